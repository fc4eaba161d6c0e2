"""Runs the AWS CLI commands of README and runbooks without the AWS CLI.

The CLI's commands and options are botocore's operations and parameters, spelled with dashes; so a command that names an
operation or option which does not exist fails here too.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from botocore import xform_name


def commands_of(page: Path) -> list[str]:
    """The commands in a Markdown page's `sh` blocks, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in re.sub(r" *\\\n *", " ", block).splitlines() if line.strip()]


def run_aws(command: str, client: Any) -> dict[str, Any]:
    """Runs `aws SERVICE OPERATION --option value …` with boto3.

    Args:
        command: the command as written; global options such as `--endpoint-url` are the client's business.
        client: called with a service's name, gives its boto3 client.

    Raises:
        ValueError: no such operation or option.
    """
    program, service, operation, *rest = shlex.split(command)
    if program != "aws":
        raise ValueError(f"not an AWS CLI command: {command}")
    boto = client(service)
    methods = {xform_name(name, "-"): name for name in boto.meta.service_model.operation_names}
    if operation not in methods:
        raise ValueError(f"aws {service} has no operation {operation}")
    members = boto.meta.service_model.operation_model(methods[operation]).input_shape.members
    options = {f"--{xform_name(name, '-')}": (name, shape) for name, shape in members.items()}
    parameters = {}
    for option, value in zip(rest[::2], rest[1::2], strict=True):
        if option not in options:
            raise ValueError(f"aws {service} {operation} has no option {option}")
        name, shape = options[option]
        parameters[name] = json.loads(value) if shape.type_name in ("structure", "map", "list") else value
    answer: dict[str, Any] = getattr(boto, xform_name(methods[operation]))(**parameters)
    return answer
