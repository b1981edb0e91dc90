"""The NoCloud image, read by isoinfo and blkid; the size limit, and that the data does not show."""

import pytest
import yaml

from provisioner.contracts.errors import InvalidRequestError
from provisioner.pipeline.cloud_init import MAX_DATA, SEED_BYTES, CloudInit
from provisioner.pipeline.iso9660 import SECTOR, iso9660
from tests.servers.seeds import files_of, label_of

DATA = CloudInit(user_data="secret-1", meta_data="secret-2", network_config="secret-3")


@pytest.mark.parametrize("size", [0, 1, SECTOR - 1, SECTOR, SECTOR + 1, 1_000_000])
def test_files_of_every_size(tmp_path, size):
    files = {"user-data": b"x" * size, "meta-data": b"y", "network-config": b"z" * size}
    image = iso9660("CIDATA", files, 1_700_000_000.0)
    assert len(image) % SECTOR == 0
    seed = tmp_path / "seed"
    seed.write_bytes(image.ljust(SEED_BYTES, b"\0"))
    wanted = {name: data.decode() for name, data in files.items()}
    assert files_of(seed, "-R") == files_of(seed, "-J") == wanted
    assert label_of(seed) == ("iso9660", "CIDATA")


def test_same_data_makes_the_same_image():
    assert DATA.image("job-1", "web01", 1.0) == DATA.image("job-1", "web01", 1.0)
    assert DATA.image("job-1", "web01", 1.0) != DATA.image("job-1", "web01", 2.0)


def test_largest_data_fits_a_seed():
    largest = CloudInit(user_data="x" * (MAX_DATA - 2), meta_data="m", network_config="n")
    largest.check()
    assert len(largest.image("job-1", "web01", 1.0)) <= SEED_BYTES
    with pytest.raises(InvalidRequestError, match="at most 1 MiB in total"):
        CloudInit(user_data="é" * (MAX_DATA // 2), meta_data="m").check()


def test_data_does_not_show():
    """Not in a repr, as a traceback or a log line may have it, and not in the seal."""
    assert "secret" not in repr(DATA) + str(DATA) + f"{DATA!r}" + DATA.seal()
    assert DATA.has_seal(DATA.seal())
    assert not DATA.has_seal(CloudInit(user_data="secret-1").seal())


@pytest.mark.parametrize("name", ["web-01", "web_01.example", "a+b"])
def test_default_meta_data_is_yaml(name):
    image = CloudInit(user_data="x").image("job-1", name, 1.0)
    text = image[25 * SECTOR :].partition(b"\0")[0].decode()
    assert yaml.safe_load(text) == {"instance-id": "job-1", "local-hostname": name}
