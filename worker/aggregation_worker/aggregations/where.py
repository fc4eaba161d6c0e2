"""The `where` of an aggregation: a JMESPath expression that decides whether an image counts."""

from aggregation_worker.aggregations.expressions import Expression
from aggregation_worker.streams.records import Image


class Where(Expression):
    """A compiled `where`.

    An image counts if the result is true in JMESPath's sense: neither false, null nor empty. So one that lacks an
    attribute, or has something else in its place, is mostly outside; only a function that cannot take what is there, or
    a comparison of a text with a number by order, cannot be evaluated.
    """

    def __init__(self, expression: str) -> None:
        """Compiles `expression`.

        Raises:
            ValueError: see `Expression`.
        """
        super().__init__(expression, "where")

    def __call__(self, image: Image) -> bool:
        """Whether an image counts.

        Raises:
            MalformedValueError: the expression cannot be evaluated on the image's values.
        """
        result = self.evaluate(image)
        return not (result is None or result is False or result == "" or result in ([], {}))
