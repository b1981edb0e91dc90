"""Every example of api.yaml is what the service answers, apart from values that differ in each run."""

from tests.provisioner.api.recordings import API_YAML, DOCUMENTED, record, written


async def test_examples_are_recorded_answers():
    """If this fails after a change that is meant: python -m tests.provisioner.api.recordings"""
    recorded = await record()
    assert recorded.keys() == DOCUMENTED.keys()
    for name, value in recorded.items():
        assert DOCUMENTED[name] == value, name
    assert written(API_YAML.read_text(), recorded) == API_YAML.read_text()
