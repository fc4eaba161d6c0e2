"""The definitions of the deployed function, read from its bundle, so that a command cannot use another file."""

import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

from aggregation_worker.operations.errors import CommandError

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

# Seconds to connect, and to wait for more; botocore's types know one number for both.
_TIMEOUTS: Any = (5, 30)
_ATTEMPTS = 3
_BUNDLED = "aggregations.toml"


def deployed_definitions(client: "LambdaClient", function: str) -> tuple[Path, dict[str, str]]:
    """The definitions file in a function's bundle, and the function's environment variables.

    The file is kept under the hash of its bundle, so a bundle is fetched once.

    Raises:
        CommandError: it cannot be fetched, or is not the bundle of a worker.
        ClientError: the function is not there, or may not be looked at.
    """
    answer = client.get_function(FunctionName=function)
    configuration = answer["Configuration"]
    variables = dict(configuration.get("Environment", {}).get("Variables", {}))
    file = _cache_folder() / f"{configuration['CodeSha256'].replace('/', '_')}.toml"
    if not file.is_file():
        try:
            bundle = zipfile.ZipFile(io.BytesIO(_fetched(answer["Code"]["Location"])))
            _keep(file, bundle.read(_BUNDLED))
        except (CommandError, zipfile.BadZipFile, KeyError) as error:
            raise CommandError(
                f"the definitions of function {function} cannot be read from its bundle ({error}): "
                "give --definitions FILE"
            ) from error
    return file, variables


def _fetched(location: str) -> bytes:
    """The way that boto3's own requests take: by the environment's proxies and certificates, and more than once.

    Raises:
        CommandError: why it was not to be had.
    """
    certificates: Any = os.environ.get("AWS_CA_BUNDLE") or True
    session = URLLib3Session(certificates, get_environ_proxies(location), _TIMEOUTS)
    problem = ""
    for _ in range(_ATTEMPTS):
        try:
            answer = session.send(AWSRequest("GET", location).prepare())
        except BotoCoreError as error:
            # Without the location's query, which is as good as a password for some minutes.
            problem = str(error).replace(location, location.partition("?")[0])
        else:
            if answer.status_code == 200:
                return answer.content
            problem = f"HTTP status {answer.status_code}"
    raise CommandError(problem)


def _keep(file: Path, content: bytes) -> None:
    """In one step: another command may read it at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as scratch:
        scratch.write(content)
    Path(scratch.name).replace(file)


def _cache_folder() -> Path:
    """As the XDG Base Directory Specification has it; a relative path is ignored."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "dynamodb-aggregation-worker" / "definitions"
