"""Synthesizes stacks for tests, without bundling, and reads their templates."""

import functools
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aws_cdk as cdk
from aws_cdk.assertions import Template

from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker_cdk.options import Options
from aggregation_worker_cdk.synthesis import add_stack

CDK = Path(__file__).parents[2] / "cdk"

# What a second user's file could hold: an existing table, retraction, a table shared by two aggregations, number keys.
OTHER_DEFINITIONS = """
[source]
stream_arn = "arn:aws:dynamodb:eu-central-1:123456789012:table/sales/stream/2026-01-01T00:00:00.000"
partition_key = { name = "id", type = "N" }

[[aggregations]]
name = "revenue_by_customer"
table = "customer_totals"
partition_key = { name = "customer", from = "customer.number", type = "N" }
sum = { revenue = "quantity * price" }
remove = "retract"

[[aggregations]]
name = "orders_by_customer"
table = "customer_totals"
partition_key = { name = "customer", from = "customer.number", type = "N" }
count = "orders"

[[aggregations]]
name = "orders_by_hour"
table = "hourly_orders"
partition_key = { name = "shop", from = "shop" }
sort_key = { name = "hour", from = "sold_at", truncate = "hour" }
count = "orders"
sum = { revenue = "quantity * price" }
indexes = [
  { name = "by_hour", partition_key = "hour", sort_key = "revenue" },
  { name = "by_revenue", partition_key = "revenue", sort_key = "orders" },
]
"""


@dataclass(frozen=True)
class Stack:
    """A synthesized stack.

    Attributes:
        template: as CloudFormation gets it.
    """

    template: dict[str, Any]

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """The resources of a type, such as `SQS::Queue`, by logical id without its hash."""
        return {
            _without_hash(logical_id): resource
            for logical_id, resource in self.template["Resources"].items()
            if resource["Type"] == f"AWS::{kind}"
        }

    def properties(self, kind: str) -> dict[str, Any]:
        """The properties of the only resource of a type, references written out."""
        (resource,) = self.of_type(kind).values()
        found: dict[str, Any] = plain(resource["Properties"])
        return found

    def tables(self) -> dict[str, dict[str, Any]]:
        """The DynamoDB tables that have a name of their own, by it."""
        tables = self.of_type("DynamoDB::Table").values()
        return {table["Properties"]["TableName"]: table for table in tables if "TableName" in table["Properties"]}


@functools.cache
def synthesized(definitions: str | None = None, **options: Any) -> Stack:
    """The stack of a definitions file's text (of the bundled file if not given) and of options."""
    with tempfile.TemporaryDirectory() as folder:
        file = SAMPLE_FILE
        if definitions is not None:
            file = Path(folder) / "definitions.toml"
            file.write_text(definitions)
        chosen = Options(definitions_file=file, **options)
        app = cdk.App(context={"aws:cdk:bundling-stacks": []}, outdir=folder)
        return Stack(dict(Template.from_stack(add_stack(app, chosen)).to_json()))


def plain(value: Any) -> Any:
    """A template's value with references as text: `<Queue.Arn>`, `<AWS::Region>`; logical ids without their hash."""
    if isinstance(value, list):
        return [plain(element) for element in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"Ref"}:
        return f"<{_without_hash(value['Ref'])}>"
    if value.keys() == {"Fn::GetAtt"}:
        logical_id, attribute = value["Fn::GetAtt"]
        return f"<{_without_hash(logical_id)}.{attribute}>"
    if value.keys() == {"Fn::Join"}:
        separator, parts = value["Fn::Join"]
        return separator.join(plain(part) for part in parts)
    return {key: plain(element) for key, element in value.items()}


def _without_hash(logical_id: str) -> str:
    return re.sub(r"[0-9A-F]{8}$", "", logical_id)
