"""The S3 on-failure destination: the document and the key that Lambda writes for records it gives up.

Source: "Retain discarded records for a DynamoDB event source", AWS Lambda developer guide. Of all destinations only S3
receives the records themselves.
"""

import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aggregation_worker.dead_letters import ON_FAILURE_PREFIX
from aggregation_worker.local.delivery import DiscardCondition, DiscardedBatch
from aggregation_worker.local.local_function import event_text

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


@dataclass(frozen=True, slots=True)
class OnFailureDestination:
    """Writes discarded batches of one mapping to a bucket.

    Attributes:
        client: boto3's S3 client.
        bucket: the bucket's name.
        function_arn: named in every document.
        stream_arn: named in every document.
        mapping_uuid: the event source mapping's UUID, part of every key.
    """

    client: "S3Client"
    bucket: str
    function_arn: str
    stream_arn: str
    mapping_uuid: str = field(default_factory=lambda: str(uuid.uuid4()))

    def deliver(self, discarded: DiscardedBatch, shard_id: str, now: float) -> str:
        """Writes one document and returns its key.

        Args:
            discarded: what is given up.
            shard_id: where it was read.
            now: epoch seconds.

        Raises:
            botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError: S3 refused it or was not reached.
        """
        moment = datetime.fromtimestamp(now, UTC)
        key = object_key(self.mapping_uuid, shard_id, moment)
        self.client.put_object(
            Bucket=self.bucket,
            Key=key,
            Body=json.dumps(self._document(discarded, shard_id, moment)).encode(),
            ContentType="application/octet-stream",
        )
        return key

    def _document(self, discarded: DiscardedBatch, shard_id: str, moment: datetime) -> dict[str, Any]:
        first, last = discarded.records[0], discarded.records[-1]
        invocation = discarded.last_invocation
        document: dict[str, Any] = {
            "requestContext": {
                "requestId": invocation.request_id if invocation else str(uuid.uuid4()),
                "functionArn": self.function_arn,
                "condition": discarded.condition.value,
                "approximateInvokeCount": discarded.invoke_count,
            },
        }
        if discarded.condition is not DiscardCondition.RECORD_AGE_EXCEEDED:
            document["responseContext"] = {
                "statusCode": 200,
                "executedVersion": "$LATEST",
                "functionError": "Unhandled" if invocation and invocation.function_error else None,
            }
        return document | {
            "version": "1.0",
            "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "DDBStreamBatchInfo": {
                "shardId": shard_id,
                # As the stream spells them: a sequence number may begin with zeros.
                "startSequenceNumber": first.event["dynamodb"]["SequenceNumber"],
                "endSequenceNumber": last.event["dynamodb"]["SequenceNumber"],
                "approximateArrivalOfFirstRecord": _seconds_text(first.created_at),
                "approximateArrivalOfLastRecord": _seconds_text(last.created_at),
                "batchSize": len(discarded.records),
                "streamArn": self.stream_arn,
            },
            "payload": event_text(discarded.records),
        }


def object_key(mapping_uuid: str, shard_id: str, moment: datetime) -> str:
    """The key of a new document: `aws/lambda/<mapping>/<shard>/YYYY/MM/DD/YYYY-MM-DDTHH.MM.SS-<random UUID>`."""
    return f"{ON_FAILURE_PREFIX}{mapping_uuid}/{shard_id}/{moment:%Y/%m/%d/%Y-%m-%dT%H.%M.%S}-{uuid.uuid4()}"


def _seconds_text(epoch_seconds: float) -> str:
    return datetime.fromtimestamp(epoch_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
