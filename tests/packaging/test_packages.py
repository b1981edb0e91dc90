"""Tests of the built packages: reproducible, and they work when extracted by dpkg and installed by rpm."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest

from tests.packaging.building import CHECKOUT, build, distribution_python, snapshot
from tests.packaging.conftest import rpm

NAME = "libvirt-volume-provisioner"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/nonexistent", "HOME": "/nonexistent"}


def lvp(tree, *words, name="lvp"):
    ended = subprocess.run(
        [tree / "usr/bin" / name, *words], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_build_is_reproducible(packages, tmp_path):
    again = build(snapshot(tmp_path / "elsewhere"), tmp_path / "packages", TZ="Asia/Tokyo", LANG="de_DE.UTF-8")
    assert again.deb.read_bytes() == packages.deb.read_bytes()
    assert again.rpm.read_bytes() == packages.rpm.read_bytes()


def test_page_is_packaged(tree, source):
    """The files of the web page are no Python modules, so a build could leave them out."""
    packaged = tree / f"usr/lib/{NAME}/site/provisioner/api/static"
    expected = source / "provisioner/api/static"
    assert {file.name: file.read_bytes() for file in packaged.iterdir()} == {
        file.name: file.read_bytes() for file in expected.iterdir()
    }


@pytest.mark.parametrize("name", ["lvp", NAME])
def test_package_runs(tree, name):
    assert re.fullmatch(rf"{name} \d+\.\d+\.\d+\S*\n", lvp(tree, "--version", name=name))
    assert re.search(r"target +thin-lvm +libvirt-volume-provisioner", lvp(tree, "plugins"))


def test_packaged_config_with_target(tree, tmp_path):
    text = (tree / f"etc/{NAME}/config.toml").read_text()
    for line in ("[targets.thin]", 'plugin = "thin-lvm"', 'volume_group = "vg0"', 'pool = "thin"'):
        text = text.replace(f"#{line}", line, 1)
    (tmp_path / "config.toml").write_text(text)
    assert "no errors" in lvp(tree, "config", "check", str(tmp_path / "config.toml"))


def without_paths(value):
    """Return the value without its entries that are paths."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items() if not str(inner).startswith("/")}
    return value


def test_packaged_defaults_match_embedded(tree, tmp_path):
    """The embedded default differs only by its paths, its target and its source, which serves images of this host."""
    (tmp_path / "config.toml").write_text('[targets.files]\nplugin = "file"\ndirectory = "/srv"\n')
    packaged = tomllib.loads(lvp(tree, "config", "show", str(tmp_path / "config.toml")))
    embedded = tomllib.loads(lvp(tree, "config", "show"))
    assert embedded.pop("sources")
    assert not packaged.pop("sources")
    made = embedded["targets"].popitem()[1]
    named = packaged["targets"].popitem()[1]
    assert (made.pop("make_directory"), named.pop("make_directory")) == (True, False)
    assert without_paths(made) == without_paths(named)
    assert without_paths(embedded) == without_paths(packaged)
    assert {"server", "auth", "jobs", "cache", "log", "converters"} <= set(packaged)


def test_launcher_is_isolated(deb_tree):
    """It imports nothing from the distribution's packages or the caller's paths."""
    code = "import sys; print(*sys.path, sep='\\n')"
    launcher = (deb_tree / f"usr/lib/{NAME}/lvp").read_text().split("from provisioner")[0]
    ended = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", launcher.replace("__file__", "'/usr/lib/x/lvp'") + code],
        capture_output=True, text=True, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    assert not [path for path in ended.stdout.splitlines() if "dist-packages" in path or "nonexistent" in path]


def test_environment_can_be_imported(deb_tree):
    """Jobs import some modules late, so a missing dependency would show only then."""
    modules = (
        "provisioner.daemon, provisioner.download.inspection, lvp_source_s3.source, lvp_source_oci.source, "
        "lvp_source_file.source, lvp_convert_native.converter"
    )
    code = (
        f"import sys; sys.path.append({str(deb_tree / f'usr/lib/{NAME}/site')!r}); import {modules}, lvp_guard_libvirt;"
        "import oslo_utils.imageutils.format_inspector, minio, rich.progress, hypercorn.trio;"
        "import zstandard, isal.igzip, deflate"
    )
    subprocess.run(["/usr/bin/python3", "-IS", "-c", code], check=True, env=ENVIRONMENT)


def test_libraries_need_only_declared_ones(deb_tree):
    libraries = sorted(deb_tree.rglob("*.so"))
    assert libraries
    said = subprocess.run(["objdump", "-p", *libraries], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"NEEDED +(\S+)", said))
    glibc = {f"lib{name}" for name in ("c.so.6", "m.so.6", "dl.so.2", "pthread.so.0", "rt.so.1")}
    assert needed <= glibc | {"libgcc_s.so.1", "ld-linux-x86-64.so.2"}
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_(\d+\.\d+)", said)}
    assert max(versions) <= (2, 28)


def test_deb_dependencies_exist(packages):
    ended = subprocess.run(
        ["apt-get", "--simulate", "install", packages.deb], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert f"Inst {NAME} " in ended.stdout


def test_rpm_dependencies(packages):
    said = subprocess.run(["rpm", "-qp", "--requires", packages.rpm], check=True, capture_output=True, text=True).stdout
    assert {
        f"python(abi) = {distribution_python().removeprefix('python')}",
        "lvm2",
        "qemu-img",
        "device-mapper-persistent-data",
    } <= set(said.splitlines())


def test_deb_passes_lintian(packages):
    ended = subprocess.run(
        ["lintian", "--fail-on", "error,warning", packages.deb], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout


def test_rpm_passes_rpmlint(packages):
    command = ["rpmlint", "-c", CHECKOUT / "packaging/rpmlint.toml", packages.rpm]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("page", ["man1/lvp.1.gz", f"man5/{NAME}.toml.5.gz", f"man8/{NAME}.8.gz"])
def test_man_page_has_no_warnings(tree, page):
    path = tree / "usr/share/man" / page
    ended = subprocess.run(
        ["man", "--warnings", "--local-file", str(path)],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert ended.stderr == ""
    assert "NAME" in ended.stdout


COMPLETE = {
    "bash": ("bash-completion/completions/lvp", 'source {}; COMP_WORDS=(lvp job ca); COMP_CWORD=2; '
             '_lvp_completion lvp; printf "%s\\n" "${{COMPREPLY[@]}}"'),
    "fish": ("fish/vendor_completions.d/lvp.fish", "source {}; complete --do-complete 'lvp job ca'"),
    "zsh": ("zsh/vendor-completions/_lvp", "autoload -U compinit; compinit -u -D; source {}; "
            "print -l $_comps[lvp]; _LVP_COMPLETE=zsh_complete COMP_WORDS='lvp job ca' COMP_CWORD=2 lvp"),
}  # fmt: skip


@pytest.mark.parametrize("shell", COMPLETE)
def test_completion_completes(deb_tree, shell):
    file, script = COMPLETE[shell]
    environment = {"PATH": f"{deb_tree}/usr/bin:/usr/bin:/bin", "HOME": str(deb_tree / "tmp"), "TERM": "dumb"}
    (deb_tree / "tmp").mkdir(exist_ok=True)
    ended = subprocess.run(
        [shell, "-c", script.format(deb_tree / "usr/share" / file)],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert "cancel" in ended.stdout
    assert ended.stderr == ""


def test_plugin_package_is_found(packages, plugin, tmp_path):
    (extra,) = plugin.folder.glob("*.deb")
    for package in (packages.deb, extra):
        subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    assert re.search(r"observer +ledger +lvp-example +1\.0\.0", lvp(tmp_path, "plugins"))
    # An upgrade of the service replaces only its own files.
    shutil.rmtree(tmp_path / f"usr/lib/{NAME}/site")
    subprocess.run(["dpkg-deb", "--extract", packages.deb, tmp_path], check=True)
    assert "ledger" in lvp(tmp_path, "plugins")


def test_rpm_lifecycle_with_plugin(packages, plugin, source, tmp_path):
    (extra,) = plugin.folder.glob("*.rpm")
    newer = build(snapshot(tmp_path / "source", "9.9.9"), tmp_path / "newer")
    tree = tmp_path / "root"
    rpm(tree, "--install", "--nodeps", "--noscripts", str(packages.rpm), str(extra))
    config = tree / f"etc/{NAME}/config.toml"
    config.write_text("# mine\n")
    rpm(tree, "--upgrade", "--nodeps", "--noscripts", str(newer.rpm))
    assert lvp(tree, "--version") == "lvp 9.9.9\n"
    assert config.read_text() == "# mine\n"
    assert "ledger" in lvp(tree, "plugins")
    rpm(tree, "--erase", "--nodeps", "--noscripts", NAME)
    assert [path.name for path in (tree / "usr/lib" / NAME / "plugins").iterdir() if path.is_dir()]  # the plugin's
    assert not (tree / "usr/bin/lvp").exists()
    assert config.with_suffix(".toml.rpmsave").read_text() == "# mine\n"
