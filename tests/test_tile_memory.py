"""The tile size for a memory budget."""

import itertools
import subprocess
import sys

import pytest
import torch

from restormixer_arch import control_groups
from restormixer_arch import memory as process_memory
from restormixer_arch.errors import UserError
from restormixer_arch.inference import tile_memory as memory
from restormixer_arch.inference.tile_memory import TileMemory, measure_tile_memory
from restormixer_arch.memory import parse_bytes

CPU = torch.device("cpu")


def test_tile_size_for_a_budget():
    known = TileMemory(budget=10**9, held=10**8, fixed=10**7, per_pixel=1000)
    # (1e9 - 1e8 - 2e8) / 1.25 - 1e7 = 5.5e8 bytes: 550,000 pixels, side 741, as a multiple of 64: 704
    assert known.tile(4000, 6000, 2 * 10**8, 64) == 704
    assert known.tile(510, 1000, 2 * 10**8, 64) == 1000  # 512 x 1024 = 524,288 pixels: one tile
    assert known.tile(550, 900, 2 * 10**8, 64) == 704  # 576 x 960 = 552,960: too many
    assert known.tile(1, 1, 0, 64) == 128
    elsewhere = TileMemory(budget=10**9, held=10**8, fixed=10**7, per_pixel=1000, on_host=False)
    assert elsewhere.tile(4000, 6000, 2 * 10**8, 64) == 832  # 710,000 pixels
    plenty = TileMemory(budget=10**12, per_pixel=1000)
    assert plenty.tile(4000, 6000, 2 * 10**8, 64) == 2048 and plenty.tile(2048, 2048, 10**7, 64) == 2048


def test_memory_of_thin_images_includes_their_padding():
    known = TileMemory(budget=125 * 10**7, per_pixel=1000)  # room for a million pixels
    assert known.tile(2, 15_616, 0, 64) == 15_616  # padded to 64 x 15,616 = 999,424 pixels
    assert known.tile(2, 15_617, 0, 64) == 960 == known.tile(15_617, 2, 0, 64)


def test_default_budget_rejects_no_image():
    known = TileMemory(budget=10**9, held=9 * 10**8, fixed=10**7, per_pixel=10_000, strict=False)
    assert [known.tile(200, 300, 2 * 10**8, overlap) for overlap in (0, 64, 65)] == [64, 128, 192]


def test_insufficient_budget_is_reported_with_the_required_memory():
    known = TileMemory(budget=10**9, held=9 * 10**8, fixed=10**7, per_pixel=10_000)
    # 0.9 + 0.2 + 1.25 * (0.01 + 1e4 * 128 ** 2 / 1e9) GB
    with pytest.raises(
        UserError,
        match="max-memory: 1.00 GB is not enough for 300 x 200 pixels: the smallest tile needs 1.32 GB in all",
    ):
        known.tile(200, 300, 2 * 10**8, 64)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_memory_is_measured_on_the_cpu():
    def restore_tile(part):
        return part.new_ones(500 * part.shape[-1] * part.shape[-2]).sum()  # 2000 bytes per pixel

    freed = [bytes(50_000) for _ in range(10_000)]
    last = bytes(50_000)  # keeps the heap from shrinking automatically
    del freed
    found = measure_tile_memory(restore_tile, 3, CPU, 4 * 10**9)
    assert len(last) == 50_000
    assert found.per_pixel == pytest.approx(2000, rel=0.1)
    assert found.budget == 4 * 10**9 and found.held > 10**8 and found.fixed < 10**7 and found.on_host and found.strict
    default = measure_tile_memory(restore_tile, 3, CPU)
    assert default.budget == default.held + 3 * 10**9 and not default.strict
    earlier = measure_tile_memory(restore_tile, 3, CPU, held=10**8)
    assert (earlier.held, earlier.budget) == (10**8, 31 * 10**8)
    assert earlier.per_pixel == pytest.approx(2000, rel=0.1)


def test_nothing_is_measured_if_the_peak_cannot_be_reset(monkeypatch):
    """As on macOS: the first tile seems to need the peak memory of the imports, the second one hardly more."""
    monkeypatch.setattr(memory, "reset_peak", lambda: False)
    peaks = iter([10**9, 10**9 + 10**7, 11 * 10**8])
    monkeypatch.setattr(memory, "peak_bytes", lambda: next(peaks))
    assert measure_tile_memory(lambda part: part, 3, CPU, 3 * 10**9) == TileMemory(None)


def test_tile_size_without_measurement(monkeypatch):
    monkeypatch.setattr(memory, "peak_bytes", lambda: None)
    unknown = measure_tile_memory(lambda part: part, 3, CPU)
    assert [unknown.tile(4000, 6000, 10**9, overlap) for overlap in (0, 64, 448, 449)] == [512, 512, 512, 513]
    assert measure_tile_memory(lambda part: part, 3, torch.device("meta")).budget is None


def test_limit_that_cannot_be_enforced_gives_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(memory, "reset_peak", lambda: False)
    assert measure_tile_memory(lambda part: part, 3, CPU).budget is None
    assert capsys.readouterr().err == ""
    assert measure_tile_memory(lambda part: part, 3, CPU, 4 * 10**8).budget is None
    assert capsys.readouterr().err == (
        "basicsr: warning: max_memory: the memory of a tile cannot be measured on this system; tiles have 512 pixels, "
        "and may need more than 0.40 GB\n"
    )


def test_measuring_does_not_change_the_random_state():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    measure_tile_memory(lambda part: part * 2, 3, CPU)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_insufficient_memory_to_measure_is_reported(error):
    def restore_tile(part):
        if part.shape[-1] == 512:
            raise error
        return part

    with pytest.raises(UserError, match="tile: not enough memory to determine .* up to 512 pixels; give a smaller one"):
        measure_tile_memory(restore_tile, 3, CPU)
    error = ValueError("a slip")
    with pytest.raises(ValueError, match="a slip"):
        measure_tile_memory(restore_tile, 3, CPU)


def test_memory_is_measured_on_a_gpu(monkeypatch):
    """With torch's memory counters, which are simulated here without a GPU."""
    peaks = iter(2 * [10**8, 10**8 + 10**6 * (512**2 - 128**2) // 1000])
    played = {
        "empty_cache": lambda: None,
        "memory_allocated": lambda device: 4 * 10**7,
        "reset_peak_memory_stats": lambda device: None,
        "synchronize": lambda device: None,
        "max_memory_allocated": lambda device: next(peaks),
        "mem_get_info": lambda device: (8 * 10**9, 16 * 10**9),
        "device_count": lambda: 2,
    }
    for name, function in played.items():
        monkeypatch.setattr(torch.cuda, name, function)
    found = measure_tile_memory(lambda part: part, 3, torch.device("cuda"))
    budget = int(0.8 * (8 * 10**9 + 4 * 10**7))
    assert found == TileMemory(budget, 4 * 10**7, found.fixed, 1000.0, on_host=False, strict=False)
    assert found.fixed == pytest.approx(10**8 - 4 * 10**7 - 1000 * 128**2)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "6(x2)")  # three processes per GPU
    assert measure_tile_memory(lambda part: part, 3, torch.device("cuda")).budget == budget // 3


@pytest.mark.parametrize(
    ("text", "size"), [("3G", 3 * 10**9), ("800M", 8 * 10**8), ("1.5gb", 15 * 10**8), ("7", 7), ("2 k", 2000)]
)
def test_parse_bytes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "3X", "-1G", "0", "G", "1e9", "3 Gigs"])
def test_parse_bytes_rejects_invalid_text(text):
    with pytest.raises(ValueError, match=f"expected an amount of memory such as 3G or 800M, got '{text}'"):
        parse_bytes(text)


PEAKS = """
from restormixer_arch.memory import peak_bytes, reset_peak
able, before = reset_peak(), peak_bytes()
block = bytearray(200_000_000)
high = peak_bytes()
del block
kept = peak_bytes()
reset_peak()
print(able, *(value - before for value in (high, kept, peak_bytes())))
"""


def test_peak_can_be_reset():
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True, timeout=60)
    able, *growth = done.stdout.split()
    if able == "False":
        pytest.skip("only Linux can")
    high, kept, again = map(int, growth)
    assert high == pytest.approx(200_000_000, rel=0.01) == kept  # the kernel updates its counts in batches
    assert abs(again) < 10_000_000


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({}, 8 * 2**30),
        ({"memory.max": "max\n", "memory.current": "5\n"}, 8 * 2**30),
        ({"memory.max": f"{2 * 2**30}\n", "memory.current": f"{2**30}\n"}, 2**30),
        ({"memory.max": f"{2**31}\n", "memory.current": f"{2**31}\n", "memory.stat": "anon 5\ninactive_file 7\n"}, 7),
        ({"memory/memory.limit_in_bytes": f"{2**30}\n", "memory/memory.usage_in_bytes": f"{2**31}\n"}, 0),
        ({"job/memory.max": f"{2 * 2**30}\n", "job/memory.current": f"{2**30}\n"}, 2**30),  # SLURM job, above the step
        ({"job/step/memory.max": "30\n", "job/step/memory.current": "9\n", "memory.max": "max\n"}, 21),
        (
            {
                "memory/old/memory.limit_in_bytes": "20\n",
                "memory/old/memory.usage_in_bytes": "20\n",
                "memory/old/memory.stat": "inactive_file 9\ntotal_inactive_file 4\n",
            },
            4,
        ),
        ({"memory.max": "30\n", "memory.current": "9\n", "memory.stat": ""}, 21),  # as in some sandboxes
        ({"other/memory.max": "30\n", "other/memory.current": "9\n"}, 8 * 2**30),
    ],
)
def test_available_memory_is_limited_by_container_or_job(tmp_path, monkeypatch, limits, wanted):
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {8 * 2**20} kB\n")
    (tmp_path / "own").write_text("4:pids,memory:/old\n3:cpu:/\n0::/job/step\n")
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
        if not (stat := (tmp_path / name).with_name("memory.stat")).exists():
            stat.write_text("anon 5\n")
    monkeypatch.setattr(process_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "PROCESS_FILE", tmp_path / "own")
    assert process_memory.available_bytes() == wanted


def test_default_budget_is_limited_by_available_memory(monkeypatch):
    peaks = itertools.cycle([10**8, 2 * 10**8, 3 * 10**8])  # at rest, of the small and the medium tile
    monkeypatch.setattr(memory, "peak_bytes", lambda: next(peaks))
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**9)
    assert measure_tile_memory(lambda part: part * 2, 3, CPU, held=10**8).budget == 9 * 10**8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # processes of torchrun share the free memory
    assert measure_tile_memory(lambda part: part * 2, 3, CPU, held=10**8).budget == 3 * 10**8
