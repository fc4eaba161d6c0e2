"""The tables: the source with its stream, every target of the definitions, and the ledger.

Keys, streams and expiry come from `deployment.settings`; this module says how such a table is kept on AWS.
"""

from dataclasses import dataclass

import aws_cdk as cdk
from aws_cdk import aws_dynamodb as dynamodb
from constructs import Construct

from aggregation_worker.aggregations.contributions import Definitions, KeyType
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.deployment.settings import DeploymentError, TableDefinition

_TYPES = {KeyType.STRING: dynamodb.AttributeType.STRING, KeyType.NUMBER: dynamodb.AttributeType.NUMBER}


@dataclass(frozen=True, slots=True)
class StreamOfSource:
    """The stream that is read: of a table in this stack, or of one that existed before it."""

    table_name: str
    table_arn: str
    stream_arn: str


class Tables(Construct):
    """Source, targets and ledger.

    All have the names that the definitions give them (the ledger: the stack's, with `-ledger`). A table of a fixed name
    cannot be replaced or made a second time by mistake: a stack deployed again after `cdk destroy` fails at the tables
    that were kept, instead of beginning an empty ledger beside old totals, which would park every late record.
    """

    def __init__(self, scope: Construct, construct_id: str, *, definitions: Definitions, throwaway: bool) -> None:
        """Creates the tables.

        Raises:
            DeploymentError: the definitions use the ledger's name for another table.
        """
        super().__init__(scope, construct_id)
        self._throwaway = throwaway
        self.targets = {
            name: self._table(f"Target-{name}", name, table)
            for name, table in deployment.target_tables(definitions).items()
        }
        ledger_name = f"{cdk.Stack.of(self).stack_name}-ledger"
        if ledger_name in (definitions.source.table, *self.targets):
            raise DeploymentError(f"the definitions use {ledger_name!r}, the name of this stack's ledger, for a table")
        self.ledger = self._table("Ledger", ledger_name, deployment.LEDGER)
        self.source = self._source(definitions)

    def _source(self, definitions: Definitions) -> StreamOfSource:
        name, stream_arn = definitions.source.table, definitions.source.stream_arn
        if stream_arn is not None:
            return StreamOfSource(name, stream_arn.partition("/stream/")[0], stream_arn)
        wanted = deployment.source_table(definitions)
        assert wanted is not None  # noqa: S101 - None only for a source that exists
        table = self._table("Source", name, wanted)
        assert table.table_stream_arn is not None  # noqa: S101 - asked for with the view type
        return StreamOfSource(table.table_name, table.table_arn, table.table_stream_arn)

    def _table(self, construct_id: str, name: str, wanted: TableDefinition) -> dynamodb.Table:
        keys = [dynamodb.Attribute(name=key, type=_TYPES[kind]) for key, kind in wanted.keys]
        table = dynamodb.Table(
            self,
            construct_id,
            table_name=name,
            partition_key=keys[0],
            sort_key=keys[1] if len(keys) > 1 else None,
            stream=dynamodb.StreamViewType(wanted.stream_view_type) if wanted.stream_view_type else None,
            time_to_live_attribute=wanted.ttl_attribute,
            # A total's traffic follows its source's, which is not known here; the CDK's default is 5 units.
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            # The key is AWS's, in this account: CloudTrail records every use of it, and it has no policy to maintain.
            encryption=dynamodb.TableEncryption.AWS_MANAGED,
            # For the source, the way back from a bad write, by the second, for 35 days. Totals and ledger are never
            # continued from a backup (worker/README.md says why): it is there to look up how they were.
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            # The ledger is kept like the totals: without its pages, no late record can be told from a duplicate.
            deletion_protection=not self._throwaway,
            removal_policy=cdk.RemovalPolicy.DESTROY if self._throwaway else cdk.RemovalPolicy.RETAIN,
        )
        for index in wanted.indexes:
            keys = [dynamodb.Attribute(name=key, type=_TYPES[kind]) for key, kind in index.keys]
            table.add_global_secondary_index(
                index_name=index.name,
                partition_key=keys[0],
                sort_key=keys[1] if len(keys) > 1 else None,
                # Never the receipts: most of a row, and written with every record that counts.
                projection_type=(
                    dynamodb.ProjectionType.INCLUDE if index.measures else dynamodb.ProjectionType.KEYS_ONLY
                ),
                non_key_attributes=[*index.measures] or None,
            )
        return table
