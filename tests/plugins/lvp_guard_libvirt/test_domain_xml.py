"""Tests of reading domain and pool XML."""

from __future__ import annotations

import pytest

from lvp_guard_libvirt import guard
from lvp_guard_libvirt.domain_xml import Domain, PoolVolume, pool_folder, read_domains
from provisioner.contracts import Volume
from provisioner.contracts.errors import TargetUnavailableError

LIVE = """
<domain type='kvm' id='3'>
  <name>web &amp; mail</name>
  <uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
  <devices>
    <disk type='block' device='disk'>
      <source dev='/dev/vg0/web-01' index='1'/>
      <backingStore type='file'><source file='/srv/base.qcow2'/><backingStore/></backingStore>
      <mirror type='block' job='copy'><source dev='/dev/vg0/web-02'/></mirror>
    </disk>
    <disk type='volume' device='disk'><source pool='thin' volume='data' index='2'/></disk>
    <disk type='file' device='cdrom'/>
    <disk type='network' device='disk'><source protocol='rbd' name='pool/image'><host name='ceph'/></source></disk>
    <filesystem type='block'><source dev='/dev/vg0/shared'/><target dir='/'/></filesystem>
    <interface type='direct'><source dev='eth0' mode='bridge'/></interface>
    <console type='pty'><source path='/dev/pts/1'/></console>
  </devices>
</domain>
"""


def test_read_domains_finds_all_storage():
    (domain,) = read_domains(LIVE)
    assert (domain.name, domain.uuid) == ("web & mail", "6695eb01-f6a4-8304-79aa-97f2502e193f")
    assert domain.paths == {
        "/dev/vg0/web-01",
        "/srv/base.qcow2",
        "/dev/vg0/web-02",
        "/dev/vg0/shared",
        "rbd:pool/image",
    }
    assert domain.pool_volumes == {PoolVolume("thin", "data")}


def test_read_domains_several_documents():
    assert len(read_domains(f"{LIVE}\n\n{LIVE}\n")) == 2
    assert read_domains("\n") == []


@pytest.mark.parametrize("broken", [LIVE[:-20], "<domain>", "error: &"])
def test_read_domains_malformed(broken):
    with pytest.raises(TargetUnavailableError, match="cannot parse"):
        read_domains(broken)


def test_pool_folder():
    assert pool_folder("<pool type='logical'><target><path>/dev/vg0</path></target></pool>") == "/dev/vg0"
    assert pool_folder("<pool type='rbd'><source/></pool>") is None
    assert pool_folder("<pool type='rbd'><source><name>vms</name></source></pool>") == "rbd:vms"
    assert pool_folder("<pool type='iscsi'><source/></pool>") is None


@pytest.mark.parametrize("name", ["vms/web-01", "vms/lab/web-01"])
def test_rbd_image_is_matched_by_its_name(name):
    domain = Domain("u", "web", frozenset({f"rbd:{name}"}), frozenset())
    pooled = Domain("v", "pooled", frozenset(), frozenset({PoolVolume("ceph", "web-02")}))
    folders = {"ceph": "rbd:vms"}

    def users(path):
        volume = Volume("web-01", "ceph", path, 1)
        return [user.name for user in guard._users(volume, [domain, pooled], folders)]

    assert users(f"rbd:{name}") == ["web"]
    assert users("rbd:vms/web-02") == ["pooled"]
    assert users("rbd:vms/other/web-01") == users(f"/{name}") == []
