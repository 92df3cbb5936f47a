import re

import pytest
from hypothesis import given, strategies as st

from headrace_server.errors import InvalidName
from headrace_server.names import DatasetName, JobName, ModelName, SnapshotName, is_id, new_job_id, parse_predictable

IDS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
Name = JobName | DatasetName | ModelName
JOBS = IDS.map(lambda job: f"trainingJobs/{job}")
NAMES: st.SearchStrategy[Name] = st.one_of(
    st.builds(JobName, IDS),
    st.builds(DatasetName, IDS, st.none() | st.from_regex(r"[0-9a-f]{16}", fullmatch=True)),
    st.builds(ModelName, IDS, st.none() | st.integers(1, 999_999_999)),
    st.builds(ModelName, IDS, st.none(), IDS),
)
SNAPSHOTS: st.SearchStrategy[SnapshotName] = st.one_of(
    st.builds(SnapshotName, JOBS, st.integers(0, 10**12 - 1)),
    st.builds(SnapshotName, JOBS, st.none(), st.sampled_from(["latest", "best"])),
)


@given(NAMES)
def test_a_name_is_read_as_it_was_written(name: Name) -> None:
    assert type(name).parse(str(name)) == name


@given(NAMES, st.sampled_from([JobName, DatasetName, ModelName]))
def test_a_name_of_one_kind_is_not_read_as_another(name: Name, kind: type[Name]) -> None:
    if isinstance(name, kind):
        return
    with pytest.raises(InvalidName):
        kind.parse(str(name))


@given(
    st.one_of(
        st.text(),
        NAMES.map(str).flatmap(lambda name: st.sampled_from([f"{name}/", f"/{name}", f"{name}\n", f" {name}"])),
    )
)
def test_what_is_not_a_name_is_refused_and_blamed_on_its_field(text: str) -> None:
    for kind in (JobName, DatasetName, ModelName):
        with pytest.raises(InvalidName) as caught:
            kind.parse(text, "spec.model")
        assert caught.value.violations[0].field == "spec.model"
        assert caught.value.metadata["name"] == text


@pytest.mark.parametrize(
    "text",
    ["models/", "models/m/versions/0", "models/m/versions/01", "models/m/versions/-1", "models/m/versions/1000000000",
     "models/m/versions/", "models/m@", "models/m@a@b", "models/m/versions/1@a", "models/M", "models/m_x", "models/-m",
     "models/m-", "models/" + "m" * 64, "models/m\n", "models/m/versions/\u0661", "model/m", "Models/m"],
)  # fmt: skip
def test_near_misses_of_model_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidName, match=re.escape("models/{model}")):
        ModelName.parse(text)


@pytest.mark.parametrize(
    "text",
    ["datasets/d/versions/123", "datasets/d/versions/" + "A" * 16, "datasets/d/versions/" + "0" * 17, "datasets/.."],
)
def test_near_misses_of_data_set_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        DatasetName.parse(text)


@given(st.text(max_size=70))
def test_an_id_is_whatever_may_end_a_name(text: str) -> None:
    try:
        JobName.parse(f"trainingJobs/{text}")
    except InvalidName:
        assert not is_id(text)
    else:
        assert is_id(text)


def test_new_job_ids_are_ids_and_differ() -> None:
    ids = {new_job_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(map(is_id, ids))


@given(SNAPSHOTS)
def test_a_checkpoint_of_a_job_is_read_as_it_was_written_and_is_no_model(name: SnapshotName) -> None:
    assert parse_predictable(str(name)) == name
    assert name.job == JobName.parse(str(name).partition("@")[0])
    with pytest.raises(InvalidName):
        ModelName.parse(str(name))


@pytest.mark.parametrize(
    "text",
    ["trainingJobs/j", "trainingJobs/j@", "trainingJobs/j@newest", "trainingJobs/j@step:", "trainingJobs/j@step:-1",
     "trainingJobs/j@step:01", "trainingJobs/j@step:1000000000000", "trainingJobs/J@best", "trainingJobs/@latest"],
)  # fmt: skip
def test_near_misses_of_checkpoints_are_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(InvalidName, match=re.escape("trainingJobs/{job}@step:{step}")):
        parse_predictable(text, "model")


def test_whatever_else_answers_predictions_is_a_model() -> None:
    assert parse_predictable("models/m@a") == ModelName("m", alias="a")
