"""The runbooks: a page for every alarm and none too many, and commands that exist.

The commands are run by a shell, so that quoting and variables are the shell's; `aws` and `aggregator` are stand-ins
that write down how they were called. tests/end_to_end runs those that only look against a deployed stack.
"""

import argparse
import functools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name

from tests.infrastructure.stacks import CDK, Stack
from tests.runbook_pages import (
    ALARM_SECTIONS,
    INDEX,
    RUNBOOKS,
    TASK_SECTIONS,
    blocks_of,
    index_rows,
    main_block,
    pages,
    preamble,
)

PAGES = pages()

# Commands of the AWS CLI, versions 1 and 2, that are no operation of a service, with their options.
CUSTOM_COMMANDS = {("s3", "cp"): {"--recursive"}}
# Operations whose answer's body goes into a file that is named without an option.
WITH_OUTPUT_FILE = {("lambda", "invoke")}
# "Command line options", AWS CLI user guide, as far as the pages use them.
OF_EVERY_COMMAND = {"--query", "--output"}


def pages_of_alarms(stack: Stack) -> set[str]:
    descriptions = [alarm["Properties"]["AlarmDescription"] for alarm in stack.of_type("CloudWatch::Alarm").values()]
    return {re.search(r"runbooks/([\w-]+)\.md", description)[1] for description in descriptions}  # type: ignore[index]  # no match fails the test


def test_every_alarm__has_a_page_and_every_page_a_purpose(reconcile_stack: Stack) -> None:
    of_alarms = pages_of_alarms(reconcile_stack)
    of_tasks = set(index_rows("Tasks"))

    assert of_alarms | of_tasks == PAGES.keys()
    assert not of_alarms & of_tasks


def test_index__names_each_page_once(reconcile_stack: Stack) -> None:
    alarms, tasks = index_rows("Alarms"), index_rows("Tasks")

    assert sorted(alarms) == sorted(pages_of_alarms(reconcile_stack))
    assert sorted(alarms + tasks) == sorted(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_page__has_its_sections_in_order(name: str) -> None:
    page = PAGES[name]

    assert list(page.sections) == (TASK_SECTIONS if name in index_rows("Tasks") else ALARM_SECTIONS)
    assert all(text.strip() for text in page.sections.values())
    if "Look" in page.sections:
        assert page.title.startswith(f"{name}: ")
        assert page.blocks("Look")


@pytest.mark.parametrize("name", PAGES)
def test_page__shows_what_its_main_command_prints(name: str) -> None:
    """An alarm's page begins with it. test_runbook_outputs.py and test_deployed_stack.py hold the outputs."""
    commands = PAGES[name].blocks("Look" if "Look" in PAGES[name].sections else "Do")

    assert main_block(name) in (commands if name in index_rows("Tasks") else commands[:1])


@pytest.mark.parametrize("file", sorted(RUNBOOKS.glob("*.md")), ids=lambda file: file.stem)
def test_links__lead_to_pages(file: Path) -> None:
    links = re.findall(r"\]\((?!https://)([^)]+)\)", file.read_text())

    assert all((RUNBOOKS / link).is_file() for link in links)


@pytest.mark.parametrize("file", sorted(RUNBOOKS.glob("*.md")), ids=lambda file: file.stem)
def test_cdk_cli__has_its_readmes_version_and_known_options(file: Path) -> None:
    (version,) = set(re.findall(r"aws-cdk@[\d.]+", (CDK / "README.md").read_text()))

    commands = re.findall(r"`npx (\S+) (\w+)([^`]*)`", file.read_text())
    assert len(commands) == file.read_text().count("npx")
    for called, command, options in commands:
        assert called == version
        assert command == "deploy"
        # Those of `cdk deploy --help`, and the app's flags.
        assert re.fullmatch(r"( --revert-drift| -c (reservedConcurrency=\d+|definitions=FILE))*", options)


@pytest.mark.parametrize("name", ["README", *PAGES])
def test_commands__exist_with_their_options(name: str, tmp_path: Path) -> None:
    blocks = blocks_of(INDEX.read_text())[1:] if name == "README" else PAGES[name].blocks()

    calls, complaints = call_in_shell([preamble(), *blocks], tmp_path)

    assert not re.search(r"syntax error|unbound variable|command not found", complaints), complaints
    assert len(calls) > 1
    for program, *arguments in calls:
        if program == "aws":
            check_aws(arguments)
        else:
            check_aggregator(arguments)


def call_in_shell(blocks: list[str], folder: Path) -> tuple[list[list[str]], str]:
    """Runs blocks with stand-ins on PATH; returns how these were called, and what the shell complained about."""
    record = folder / "calls"
    record.touch()
    programs = folder / "bin"
    programs.mkdir()
    write_down = f'{{ printf \'%s\\037\' "$(basename "$0")" "$@"; printf \'\\036\'; }} >> {shlex.quote(str(record))}'
    # What they print is assigned to variables, and also run where a page runs an output.
    for name, script in {"aws": write_down, "aggregator": write_down, "awk": ":", "jq": ":", "sleep": ":"}.items():
        stand_in = programs / name
        stand_in.write_text(f"#!/bin/sh\n{script}\necho true\n")
        stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", "-u", "-c", "\n".join(blocks)],
        cwd=folder,
        env={"PATH": f"{programs}{os.pathsep}{os.defpath}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    calls = record.read_text().split("\036")[:-1]
    return [call.split("\037")[:-1] for call in calls], done.stderr


def check_aws(arguments: list[str]) -> None:
    """Fails on a service, operation or option that does not exist."""
    service, operation, *rest = arguments
    known = options_of(service, operation)
    positional = list(positional_of(rest, known))
    if (service, operation) in WITH_OUTPUT_FILE:
        assert len(positional) == 1, arguments
    elif (service, operation) not in CUSTOM_COMMANDS:
        assert not positional, arguments
    unknown = {argument for argument in rest if argument.startswith("--")} - known
    assert not unknown, f"aws {service} {operation} has no {unknown}"


@functools.cache
def options_of(service: str, operation: str) -> frozenset[str]:
    """Every option of an operation; a switch and its negation for a boolean."""
    if (service, operation) in CUSTOM_COMMANDS:
        return frozenset(OF_EVERY_COMMAND | CUSTOM_COMMANDS[service, operation])
    # In the CLI, s3 is a handful of commands of its own, and s3api the service.
    model = botocore.session.get_session().get_service_model("s3" if service == "s3api" else service)
    assert service != "s3", f"aws s3 has no {operation}"
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    assert operation in operations, f"aws {service} has no {operation}"
    shape = model.operation_model(operations[operation]).input_shape
    options = set(OF_EVERY_COMMAND)
    for name, member in shape.members.items() if shape else ():
        option = xform_name(name, "-")
        options |= {f"--{option}"} | ({f"--no-{option}"} if member.type_name == "boolean" else set())
    return frozenset(options)


def positional_of(arguments: list[str], options: frozenset[str]) -> Iterator[str]:
    """The arguments that belong to no option: an option takes what follows up to the next one."""
    switches = {option for option in options if f"--no-{option[2:]}" in options or option.startswith("--no-")}
    lists = {"--dimensions", "--attribute-names", "--function-response-types", "--statistics"}
    owner = None
    for argument in arguments:
        if argument.startswith("--"):
            owner = None if argument in switches else argument
        elif owner is None:
            yield argument
        elif owner not in lists:
            owner = None


def check_aggregator(arguments: list[str]) -> None:
    """Fails on a subcommand or option that the real command does not have."""
    from aggregation_worker.operations.cli import build_parser

    parser = build_parser()
    try:
        parser.parse_args(arguments)
    except (SystemExit, argparse.ArgumentError) as refused:
        raise AssertionError(f"aggregator does not take {arguments}") from refused


def test_aggregator_in_a_sentence__exists() -> None:
    """In running text too, `aggregator …` names a subcommand that the real parser has."""
    from aggregation_worker.operations.cli import build_parser

    (subcommands,) = (
        action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    for file in RUNBOOKS.glob("*.md"):
        for name in re.findall(r"`aggregator ([a-z-]+)", file.read_text()):
            assert name in subcommands, f"{file.name} names aggregator {name}"


@pytest.mark.parametrize(
    "wrong",
    [
        ["sqs", "purge"],
        ["sqs", "receive-message", "--queue", "x"],
        ["lambda", "get-function-concurrency", "stray", "--function-name", "x"],
        ["s3", "cp", "a", "b", "--everything"],
    ],
)
def test_command_that_does_not_exist__is_found_out(wrong: list[str]) -> None:
    with pytest.raises(AssertionError):
        check_aws(wrong)


def test_aggregator_command_that_does_not_exist__is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    check_aggregator(["demo", "--verbose"])

    with pytest.raises(AssertionError):
        check_aggregator(["demo", "--no-such-option"])
