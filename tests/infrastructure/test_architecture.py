"""README.md's picture of the stack: it is the one that is drawn of the template, and notices what it lacks."""

from copy import deepcopy
from typing import Any

import pytest

from tests.infrastructure.stacks import Stack
from tests.pictures import architecture
from tests.pictures.__main__ import IMAGES, main
from tests.pictures.architecture import NotDrawnError, draw


def test_command__draws_the_picture_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("tests.pictures.__main__.IMAGES", tmp_path)

    main(["architecture"])

    assert (tmp_path / "architecture.svg").read_text() == (IMAGES / "architecture.svg").read_text()


def test_resource_without_a_box__is_noticed(stack: Stack) -> None:
    template = deepcopy(stack.template)
    template["Resources"]["Copies0A1B2C3D"] = {"Type": "AWS::S3::Bucket", "Properties": {}}

    with pytest.raises(NotDrawnError, match=r"^Copies \(AWS::S3::Bucket\) is in these boxes: none$"):
        draw(Stack(template))


def test_box_without_a_resource__is_noticed(stack: Stack) -> None:
    resources = {
        name: one for name, one in stack.template["Resources"].items() if one["Type"] != "AWS::CloudWatch::Dashboard"
    }

    with pytest.raises(NotDrawnError, match="dashboard"):
        draw(Stack({"Resources": resources}))


@pytest.mark.parametrize("teller", ["WorkerMapping", "DeadLettersBucket", "WorkerRole"])
def test_arrow_that_is_not_in_the_template__is_noticed(stack: Stack, teller: str) -> None:
    template = deepcopy(stack.template)
    for name, one in template["Resources"].items():
        if name[:-8] == teller:
            one["Properties"] = {}

    with pytest.raises(NotDrawnError, match=f"^{teller} says nothing of "):
        draw(Stack(template))


def test_arrows__are_between_boxes() -> None:
    assert {end for arrow in architecture.ARROWS for end in (arrow.start, arrow.end)} <= architecture.BOXES.keys()
