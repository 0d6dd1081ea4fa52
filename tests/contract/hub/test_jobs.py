"""Scheduled jobs and digital twins, driven by azure-iot-hub and azure-iot-device."""

from __future__ import annotations

import datetime
import secrets

import pytest
from azure.iot.device import IoTHubDeviceClient, MethodResponse
from azure.iot.hub import DigitalTwinClient, IoTHubJobManager
from azure.iot.hub.models import (
    CloudToDeviceMethod,
    JobRequest,
    QuerySpecification,
    Twin,
    TwinProperties,
)
from msrest.exceptions import HttpOperationError

pytestmark = pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")


@pytest.fixture
def jobs(hub):
    return hub.trusting(IoTHubJobManager.from_connection_string(hub.connection_string))


@pytest.fixture
def job_id():
    return f"kvedge-{secrets.token_hex(6)}"


@pytest.fixture
def devices(registry, new_id):
    """Two devices that a tag tells from all others."""
    mark = new_id()
    names = [new_id(), new_id()]
    for name in names:
        registry.create_device_with_sas(name, "", "", "enabled")
        registry.update_twin(name, Twin(tags={"mark": mark}), "*")
    return names, f"tags.mark = '{mark}'"


def test_a_twin_update_on_many(jobs, job_id, devices, registry, eventually):
    """A job patches all devices of its condition and counts them."""
    names, condition = devices
    request = JobRequest(
        job_id=job_id,
        type="scheduleUpdateTwin",
        update_twin=Twin(etag="*", properties=TwinProperties(desired={"rate": 5})),
        query_condition=condition,
        max_execution_time_in_seconds=60,
    )
    assert jobs.create_scheduled_job(job_id, request).status in ("queued", "running")
    eventually(lambda: jobs.get_scheduled_job(job_id).status == "completed")
    statistics = jobs.get_scheduled_job(job_id).device_job_statistics
    assert (statistics.device_count, statistics.succeeded_count) == (2, 2)
    for name in names:
        assert registry.get_twin(name).properties.desired["rate"] == 5
    query = QuerySpecification(query=f"SELECT * FROM devices.jobs WHERE jobId = '{job_id}'")
    eventually(
        lambda: (
            sorted(row.device_id for row in registry.query_iot_hub(query).items) == sorted(names)
        )
    )
    with pytest.raises(HttpOperationError) as failed:
        jobs.create_scheduled_job(job_id, request)
    assert failed.value.response.status_code == 409


def test_a_small_tier_runs_one_job_at_a_time(turn, jobs, job_id, devices, eventually):
    """A second job is queued until the first one is over."""
    # One at a time is the tier's own limit; asking is not what is tested.
    turn(tier="S1", throttle_scale=100)
    method = CloudToDeviceMethod(
        method_name="ping", response_timeout_in_seconds=5, connect_timeout_in_seconds=2
    )
    first = JobRequest(
        job_id=job_id, type="scheduleDeviceMethod", cloud_to_device_method=method,
        query_condition=devices[1], max_execution_time_in_seconds=60,
    )  # fmt: skip
    second = JobRequest(
        job_id=f"{job_id}-2", type="scheduleUpdateTwin", update_twin=Twin(etag="*", tags={"a": 1}),
        query_condition=devices[1], max_execution_time_in_seconds=60,
    )  # fmt: skip
    jobs.create_scheduled_job(job_id, first)
    jobs.create_scheduled_job(second.job_id, second)
    seen = []

    def over():
        # The second one first: what it had come to, the first one had come to before.
        later = jobs.get_scheduled_job(second.job_id).status
        both = [jobs.get_scheduled_job(job_id).status, later]
        seen.append(both)
        return both == ["failed", "completed"]

    eventually(over)
    assert ["running", "queued"] in seen
    assert ["running", "completed"] not in seen


def test_jobs_are_listed(jobs, job_id, devices, call, eventually):
    """Jobs are listed by type and status; the vendor's client asks, but cannot read the array."""
    request = JobRequest(
        job_id=job_id, type="scheduleUpdateTwin", update_twin=Twin(etag="*", tags={"listed": 1}),
        query_condition=devices[1], max_execution_time_in_seconds=60,
    )  # fmt: skip
    jobs.create_scheduled_job(job_id, request)

    def listed(kind, status):
        path = f"/jobs/v2/query?jobType={kind}&jobStatus={status}&api-version=2021-04-12"
        return [item["jobId"] for item in call("GET", path)[1]]

    eventually(lambda: job_id in listed("scheduleUpdateTwin", "completed"))
    assert job_id not in listed("scheduleUpdateTwin", "failed")
    assert job_id not in listed("scheduleDeviceMethod", "completed")


def test_a_method_on_an_absent_device(jobs, job_id, devices, eventually):
    """A device that is not there fails its part, and so the job."""
    request = JobRequest(
        job_id=job_id,
        type="scheduleDeviceMethod",
        cloud_to_device_method=CloudToDeviceMethod(
            method_name="ping", response_timeout_in_seconds=5, connect_timeout_in_seconds=0
        ),
        query_condition=devices[1],
        max_execution_time_in_seconds=60,
    )
    jobs.create_scheduled_job(job_id, request)
    eventually(lambda: jobs.get_scheduled_job(job_id).status == "failed")
    assert jobs.get_scheduled_job(job_id).device_job_statistics.failed_count == 2


def test_a_later_job_waits_and_can_be_cancelled(jobs, job_id, devices, registry):
    """A job of the future does nothing until then."""
    request = JobRequest(
        job_id=job_id,
        type="scheduleUpdateTwin",
        update_twin=Twin(tags={"never": True}),
        query_condition=devices[1],
        start_time=datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1),
        max_execution_time_in_seconds=60,
    )
    assert jobs.create_scheduled_job(job_id, request).status == "scheduled"
    assert jobs.cancel_scheduled_job(job_id).status == "cancelled"
    assert "never" not in registry.get_twin(devices[0][0]).tags


def test_digital_twins(hub, registry, new_id):
    """Model, properties and commands of a plug-and-play device."""
    name = new_id()
    device = registry.create_device_with_sas(name, "", "", "enabled")
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(name, device.authentication.symmetric_key.primary_key),
        product_info="dtmi:com:example:Thermostat;1",
        **hub.device_options(),
    )

    def heard(request):
        client.send_method_response(
            MethodResponse.create_from_method_request(request, 200, {"called": request.name})
        )

    client.on_method_request_received = heard
    client.patch_twin_reported_properties({"t": 21, "c1": {"__t": "c", "x": 1}})
    twins = hub.trusting(DigitalTwinClient.from_connection_string(hub.connection_string))
    twin = twins.get_digital_twin(name)
    assert twin["$dtId"] == name
    assert twin["$metadata"]["$model"] == "dtmi:com:example:Thermostat;1"
    assert (twin["t"], twin["c1"]["x"]) == (21, 1)
    twins.update_digital_twin(name, [{"op": "add", "path": "/target", "value": 25}])
    assert registry.get_twin(name).properties.desired["target"] == 25
    assert twins.invoke_command(name, "reboot", {"d": 1}) == {"called": "reboot"}
    assert twins.invoke_component_command(name, "c1", "go", {}) == {"called": "c1*go"}
    client.shutdown()
