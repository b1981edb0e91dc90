"""Installed plugins: which are taken, which are refused, and how a config's tables become back ends."""

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from provisioner import registry
from provisioner.back_ends import BackEnds
from provisioner.config import Config, parse
from provisioner.contracts import PROJECT, BackEnd, ImageUrl, hookimpl
from provisioner.contracts.errors import ConfigError, InvalidRequestError, PluginError, UrlNotAllowedError
from provisioner.contracts.testing import FakeConverter, FakeGuard, FakeObserver, FakeSource, FakeTarget
from provisioner.registry import Registry

URL = "https://images.example.com/disk.raw"


class DiskSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    folder: str
    slices: int = 4


def plugin(**hooks):
    """A module with these hooks."""
    return SimpleNamespace(**{name: hookimpl(hook) for name, hook in hooks.items()})


@pytest.fixture
def made(tmp_path):
    """A registry with one plugin, and what its factories were called with."""
    calls = []

    def create(kind):
        def build(settings, context):
            calls.append((context.name, settings, context.state_directory))
            return kind()

        return build

    def lvp_image_sources():
        return [BackEnd("web", create(lambda: FakeSource({URL: b""})))]

    def lvp_converters():
        return [BackEnd("native", create(FakeConverter)), BackEnd("qemu-img", create(FakeConverter))]

    def lvp_block_targets():
        return [BackEnd("disk", create(lambda: FakeTarget(tmp_path)), DiskSettings)]

    found = Registry()
    found.add(plugin(**locals_of(lvp_image_sources, lvp_converters, lvp_block_targets)), "first", "first-dist", "1.2")
    return found, calls


def locals_of(*hooks):
    return {hook.__name__: hook for hook in hooks}


def config(**tables):
    return parse({"state_directory": "/srv/x", "targets": {"main": {"plugin": "disk", "folder": "/a"}}, **tables}, "f")


# --- loading ---


def test_load_finds_installed_back_ends():
    kinds = {(info.kind, info.name) for info in registry.load().describe()}
    assert {
        ("source", "http"),
        ("source", "s3"),
        ("converter", "native"),
        ("target", "file"),
        ("target", "lvm"),
    } <= kinds


def test_add_duplicate_name(made):
    found, _ = made
    with pytest.raises(PluginError, match=r"two plugins provide a source named 'web': first-dist and second;"):
        found.add(plugin(lvp_image_sources=lambda: [BackEnd("web", FakeSource)]), "second")


def test_add_same_name_of_other_kind(made):
    found, _ = made
    found.add(plugin(lvp_guards=lambda: [BackEnd("web", FakeGuard)]), "second")
    assert ("guard", "web", "second", "") in [(i.kind, i.name, i.distribution, i.version) for i in found.describe()]


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ({"lvp_image_source": lambda: ()}, "lvp_image_source"),
        ({"lvp_guards": lambda surprise: []}, "surprise"),
        ({"lvp_guards": lambda: 1 / 0}, "its hook lvp_guards failed: division by zero"),
        ({"lvp_guards": lambda: ["livirt"]}, "must return BackEnd, not 'livirt'"),
        ({"lvp_guards": lambda: 5}, "its hook lvp_guards failed"),
    ],
    ids=["misspelt", "argument", "raises", "no back end", "no list"],
)
def test_add_invalid_plugin(hooks, words):
    with pytest.raises(PluginError, match="plugin odd cannot be used") as caught:
        Registry().add(plugin(**hooks), "odd")
    assert words in caught.value.message


def test_add_plugin_without_hooks():
    found = Registry()
    found.add(SimpleNamespace(), "empty")
    assert found.describe() == []


def test_load_plugin_with_import_error(monkeypatch):
    class Broken:
        name, value, dist = "scp", "my_plugin", None

        def load(self):
            raise ModuleNotFoundError("No module named 'paramiko'")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Broken()] if group == PROJECT else [])
    with pytest.raises(PluginError, match=r"plugin scp \(my_plugin\) cannot be loaded: No module named 'paramiko'"):
        registry.load()


# --- building ---


def test_build_creates_back_ends(made):
    found, calls = made
    back_ends = found.build(config(sources={"lab": {"plugin": "web"}}))
    assert ("main", DiskSettings(folder="/a"), Path("/srv/x")) in calls
    assert isinstance(back_ends.source_for(ImageUrl.parse(URL)), FakeSource)
    assert set(back_ends.converters) == {"raw", "qcow2"}
    assert back_ends.default_target == "main"


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"sources": {"x": {"plugin": "ftp"}}}, "sources.x.plugin: no installed plugin provides 'ftp'; allowed: web"),
        (
            {"guards": {"x": {"plugin": "libvirt"}}},
            "guards.x.plugin: no installed plugin provides 'libvirt'; allowed: none",
        ),
        ({"sources": {"x": {"plugin": "web", "urls": []}}}, "sources.x.urls: unknown key; allowed: nothing"),
        ({"sources": {"x": {"plugin": "web", "default": True}}}, "sources.x.default: unknown key; allowed: nothing"),
        ({"targets": {"t": {"plugin": "disk"}}}, "targets.t.folder: is missing; allowed: a string"),
        (
            {"targets": {"t": {"plugin": "disk", "folder": "/", "slice": 1}}},
            "targets.t.slice: unknown key; did you mean 'slices'?",
        ),
        (
            {"targets": {"t": {"plugin": "disk", "folder": "/", "slices": "many"}}},
            'targets.t.slices: found "many", allowed: a whole number',
        ),
        ({"converters": {"vdi": "native"}}, "converters.vdi: native reads only qcow2, raw"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_build_with_invalid_table(made, tables, line):
    with pytest.raises(ConfigError) as caught:
        made[0].build(config(**tables))
    assert caught.value.message == f"config: {line}"


def test_build_reports_all_errors(made):
    with pytest.raises(ConfigError) as caught:
        made[0].build(config(sources={"a": {"plugin": "x"}, "b": {"plugin": "y"}}, guards={"c": {"plugin": "z"}}))
    assert len(caught.value.message.splitlines()) == 3


def test_build_with_failing_factory(made):
    found, _ = made

    def create(settings, context):
        raise ValueError("no such volume group")

    found.add(plugin(lvp_guards=lambda: [BackEnd("odd", create)]), "second")
    with pytest.raises(ConfigError, match=r"config: guards\.g: no such volume group"):
        found.build(config(guards={"g": {"plugin": "odd"}}))


@pytest.mark.parametrize(
    ("tables", "default"),
    [
        ({"b": {"plugin": "disk", "folder": "/"}, "a": {"plugin": "disk", "folder": "/"}}, "b"),
        ({"b": {"plugin": "disk", "folder": "/"}, "a": {"plugin": "disk", "folder": "/", "default": True}}, "a"),
    ],
)
def test_build_default_target(made, tables, default):
    back_ends = made[0].build(config(targets=tables))
    assert back_ends.default_target == default
    assert back_ends.target(None) is back_ends.targets[default]


# --- asking ---


def test_lookup_of_unknown_names(tmp_path):
    back_ends = BackEnds(sources={"s": FakeSource({URL: b""})}, targets={"a": FakeTarget(tmp_path)}, default_target="a")
    with pytest.raises(UrlNotAllowedError, match=r"https://elsewhere\.example\.com/x belongs to no configured source"):
        back_ends.source_for(ImageUrl.parse("https://elsewhere.example.com/x?signature=secret"))
    with pytest.raises(InvalidRequestError, match="user name"):
        back_ends.source_for(ImageUrl.parse("https://me:secret@images.example.com/x"))
    with pytest.raises(InvalidRequestError, match="no block target 'b' is configured; there are: a"):
        back_ends.target("b")
    with pytest.raises(InvalidRequestError, match="image_type 'vmdk' is not known; there are: none"):
        back_ends.converter("vmdk")
    back_ends.readers = registry.load().build(Config()).readers
    with pytest.raises(InvalidRequestError, match=r'qemu-img can read it: add vmdk = "qemu-img" to \[converters\]'):
        back_ends.converter("vmdk")


async def test_aclose_continues_after_failure(tmp_path):
    class Stuck(FakeSource):
        async def aclose(self):
            raise OSError("a socket is gone")

    source, target, converter = FakeSource({URL: b""}), FakeTarget(tmp_path), FakeConverter()
    back_ends = BackEnds(
        sources={"stuck": Stuck({}), "fine": source},
        converters={"raw": converter, "qcow2": converter},
        targets={"t": target},
        observers={"o": FakeObserver()},
    )
    await back_ends.aclose()
    assert source.closed
    assert target.closed
    assert converter.closed
