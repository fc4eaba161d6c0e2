"""The tables: the source with its stream, every target of the definitions, and the ledger.

Keys, streams and expiry come from `deployment.settings`; this module says how such a table is kept on AWS.
"""

from aws_cdk import aws_dynamodb as dynamodb
from constructs import Construct

from aggregation_worker.aggregations.contributions import Definitions, KeyType, Source
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.deployment.settings import DeploymentError, TableDefinition
from aggregation_worker_cdk.keeping import Keeping
from aggregation_worker_cdk.own_resource import own_resource

_TYPES = {KeyType.STRING: dynamodb.AttributeType.STRING, KeyType.NUMBER: dynamodb.AttributeType.NUMBER}
_KINDS = {kind: key for key, kind in _TYPES.items()}


class MadeTable(dynamodb.Table):
    """A table that a worker makes, so that another one may read its stream."""

    def stream_arn(self) -> str:
        """The ARN of its stream, which it has from now on."""
        table = own_resource(self, dynamodb.CfnTable)
        table.stream_specification = dynamodb.CfnTable.StreamSpecificationProperty(
            stream_view_type=deployment.STREAM_VIEW_TYPE
        )
        return table.attr_stream_arn


def source_of(table: dynamodb.ITable) -> Source:
    """What is known of a table that is to be read: keys only of one that is made in the same app.

    Raises:
        DeploymentError: it has no stream, or one without old and new images.
    """
    view = deployment.STREAM_VIEW_TYPE
    stream_arn = table.stream_arn() if isinstance(table, MadeTable) else table.table_stream_arn
    made = table.node.default_child
    stream = made.stream_specification if isinstance(made, dynamodb.CfnTable) else None
    if stream_arn is None or getattr(stream, "stream_view_type", view) != view:
        raise DeploymentError(
            f"the source {table.node.path} needs a stream of old and new images: make it with "
            "stream=StreamViewType.NEW_AND_OLD_IMAGES, or import it with its table_stream_arn"
        )
    schema = table.schema_v2() if isinstance(table, dynamodb.Table) else None
    keys = [] if schema is None else [*schema.partition_keys, *schema.sort_keys]
    return Source(table.table_name, tuple((key.name, _KINDS[key.type]) for key in keys), stream_arn)


class Tables(Construct):
    """Source, targets and ledger.

    All have the names that the definitions give them (the ledger: the worker's, with `-ledger`). A table of a fixed
    name cannot be replaced or made a second time by mistake: a stack deployed again after `cdk destroy` fails at the
    tables that were kept, instead of beginning an empty ledger beside old totals, which would park every late record.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        name: str,
        definitions: Definitions,
        source: dynamodb.ITable | None,
        keeping: Keeping,
    ) -> None:
        """Creates the tables; the source only where it is not given and the definitions do not say where it is.

        Raises:
            DeploymentError: the definitions use the ledger's name for another table.
        """
        super().__init__(scope, construct_id)
        self._keeping = keeping
        prefix, targets = definitions.table_prefix, deployment.target_tables(definitions)
        self.targets = {
            table.removeprefix(prefix): self._table(f"Target-{table.removeprefix(prefix)}", table, wanted)
            for table, wanted in targets.items()
        }
        ledger_name = f"{name}-ledger"
        if ledger_name in (definitions.source.table, *targets):
            raise DeploymentError(f"the definitions use {ledger_name!r}, the name of this worker's ledger, for a table")
        self.ledger = self._table("Ledger", ledger_name, deployment.LEDGER)
        self.source, self.source_stream_arn = self._source(definitions, source)

    def _source(self, definitions: Definitions, given: dynamodb.ITable | None) -> tuple[dynamodb.ITable, str]:
        """The source and its stream's ARN."""
        stream_arn = definitions.source.stream_arn
        if stream_arn is None:
            made = self._table("Source", definitions.source.table, deployment.source_table(definitions))
            return made, made.stream_arn()
        table_arn = stream_arn.partition("/stream/")[0]
        return given or dynamodb.Table.from_table_attributes(
            self, "Source", table_arn=table_arn, table_stream_arn=stream_arn
        ), stream_arn

    def _table(self, construct_id: str, name: str, wanted: TableDefinition) -> MadeTable:
        keys = [dynamodb.Attribute(name=key, type=_TYPES[kind]) for key, kind in wanted.keys]
        table = MadeTable(
            self,
            construct_id,
            table_name=name,
            partition_key=keys[0],
            sort_key=keys[1] if len(keys) > 1 else None,
            stream=dynamodb.StreamViewType(wanted.stream_view_type) if wanted.stream_view_type else None,
            time_to_live_attribute=wanted.ttl_attribute,
            # A total's traffic follows its source's, which is not known here; the CDK's default is 5 units.
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            # AWS's key, in this account: CloudTrail records every use of it, and it has no policy to maintain.
            encryption=dynamodb.TableEncryption.AWS_MANAGED
            if self._keeping.key is None
            else dynamodb.TableEncryption.CUSTOMER_MANAGED,
            encryption_key=self._keeping.key,
            # For the source, the way back from a bad write, by the second, for 35 days. Totals and ledger are never
            # continued from a backup (worker/README.md says why): it is there to look up how they were.
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            # The ledger is kept like the totals: without its pages, no late record can be told from a duplicate.
            deletion_protection=self._keeping.protected,
            removal_policy=self._keeping.removal_policy,
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
