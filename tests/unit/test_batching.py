"""How waiting records become batches."""

import json
from dataclasses import replace

from aggregation_worker.deployment.settings import MappingSettings
from aggregation_worker.local.batching import Lane, lane_of
from aggregation_worker.local.delivery import Batch
from aggregation_worker.local.local_function import event_text
from tests.stream_fakes import AWS_DEFAULTS, get_records_record, polled_record, polled_records


def lane_with(count: int, settings: MappingSettings, *, padding: int = 0, max_payload_bytes: int = 10**9) -> Lane:
    lane = Lane(settings, max_payload_bytes)
    for number in range(1, count + 1):
        lane.add(polled_record(number, padding=padding), now=100.0)
    return lane


def numbers(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [record.sequence_number for record in batch]


def test_no_window__what_is_there_is_a_batch_at_once() -> None:
    lane = lane_with(3, replace(AWS_DEFAULTS, batch_size=100))

    assert numbers(lane.take(100.0)) == [1, 2, 3]
    assert lane.take(100.0) is None


def test_more_records_than_the_batch_size__cut_in_order() -> None:
    lane = lane_with(5, replace(AWS_DEFAULTS, batch_size=2))

    assert [numbers(lane.take(100.0)) for _ in range(3)] == [[1, 2], [3, 4], [5]]
    assert len(lane) == 0


def test_incomplete_batch__waits_for_the_end_of_its_window() -> None:
    lane = lane_with(3, replace(AWS_DEFAULTS, batch_size=4, maximum_batching_window_seconds=5))

    assert lane.take(104.9) is None
    assert numbers(lane.take(105.0)) == [1, 2, 3]


def test_full_batch__sent_before_its_window_ends() -> None:
    lane = lane_with(5, replace(AWS_DEFAULTS, batch_size=4, maximum_batching_window_seconds=5))

    assert numbers(lane.take(102.0)) == [1, 2, 3, 4]
    assert lane.take(106.9) is None
    assert numbers(lane.take(107.0)) == [5]


def test_record_that_comes_later__does_not_prolong_the_window() -> None:
    lane = lane_with(1, replace(AWS_DEFAULTS, maximum_batching_window_seconds=5))
    lane.add(polled_record(2), now=104.0)

    assert numbers(lane.take(105.0)) == [1, 2]


def test_payload_limit__batch_ends_before_it_and_without_waiting() -> None:
    settings = replace(AWS_DEFAULTS, maximum_batching_window_seconds=300)
    size_of_two = len(event_text((polled_record(1, padding=1000), polled_record(2, padding=1000))).encode())
    lane = lane_with(3, settings, padding=1000, max_payload_bytes=size_of_two)

    batch = lane.take(100.0)

    assert numbers(batch) == [1, 2]
    assert batch is not None
    assert len(event_text(batch).encode()) == size_of_two
    assert lane.take(100.0) is None


def test_payload_one_byte_too_large__last_record_waits() -> None:
    size_of_three = len(event_text(polled_records(1, 2, 3)).encode())
    lane = lane_with(3, AWS_DEFAULTS, max_payload_bytes=size_of_three - 1)

    assert [numbers(lane.take(100.0)) for _ in range(2)] == [[1, 2], [3]]


def test_single_record_over_the_payload_limit__still_delivered() -> None:
    lane = lane_with(2, AWS_DEFAULTS, padding=1000, max_payload_bytes=500)

    assert numbers(lane.take(100.0)) == [1]


def test_records_of_one_item__always_share_a_lane() -> None:
    lanes = {item: lane_of(get_records_record(1, item=item), 10) for item in map(str, range(200))}

    assert all(lane_of(get_records_record(2, item=item), 10) == lane for item, lane in lanes.items())
    assert set(lanes.values()) == set(range(10))


def test_composite_key__order_of_attributes_is_irrelevant() -> None:
    one = {"dynamodb": {"Keys": json.loads('{"orderid": {"S": "1"}, "order_date": {"S": "2024-07-15"}}')}}
    other = {"dynamodb": {"Keys": json.loads('{"order_date": {"S": "2024-07-15"}, "orderid": {"S": "1"}}')}}

    assert lane_of(one, 10) == lane_of(other, 10)
