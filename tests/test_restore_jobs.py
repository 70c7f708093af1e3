"""Which files are read and written by ``basicsr restore``."""

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from restormixer_arch.errors import UserError
from restormixer_arch.inference import jobs
from restormixer_arch.inference.jobs import Job, find_jobs, make_folder, matches_pattern, split_pattern


@pytest.fixture
def files(folder):
    for name in (
        "photo.jpg",
        "photo.png",
        "a/1.png",
        "a/b/1.PNG",
        "a/.hidden.png",
        "a/text.txt",
        "c/1.png",
        "film.mp4",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def pairs(*inputs, out="out", **options):
    jobs = find_jobs(inputs, Path(out), **options)
    return [(job.source.as_posix(), job.target.as_posix()) for job in jobs]


def test_files_folders_and_patterns(files):
    assert pairs("photo.jpg", "photo.png", "a") == [
        ("photo.jpg", "out/photo.jpg"),
        ("photo.png", "out/photo.png"),
        ("a/1.png", "out/1.png"),
        ("a/b/1.PNG", "out/b/1.PNG"),
    ]
    assert pairs("photo.*") == [("photo.jpg", "out/photo.jpg"), ("photo.png", "out/photo.png")]
    assert pairs("a/**/*.PNG") == [("a/b/1.PNG", "out/1.PNG")]
    assert pairs("a", "a/1.png") == pairs("a")  # named twice, restored once
    [job] = find_jobs(["film.mp4"], Path("out"))
    assert job.is_video and not Job(Path("a.png"), Path("b.png")).is_video


def test_compare_adds_a_second_output(files):
    [job] = find_jobs(["photo.jpg"], Path("out"), compare=True)
    assert job.outputs == [Path("out/photo.jpg"), Path("out/photo_compare.jpg")]


def test_results_inside_an_input_folder_are_not_inputs(files):
    before = pairs("a", out="a/out")
    (files / "a/out").mkdir()
    (files / "a/out/1.png").write_bytes(b"x")
    assert pairs("a", out="a/out") == before == [("a/1.png", "a/out/1.png"), ("a/b/1.PNG", "a/out/b/1.PNG")]


@pytest.mark.parametrize(
    ("pattern", "out", "result"),
    [
        ("**/1.*", "out", "out/1.png"),
        ("a/**/*.png", "a/b/out", "a/b/out/1.png"),
        ("[ab]/1.png", "./b", "b/1.png"),
        ("{folder}/**/1.png", "out", "out/deep/1.png"),
    ],
)
def test_results_that_match_a_pattern_are_not_inputs(files, pattern, out, result):
    (files / "c/1.png").unlink()
    pattern = pattern.format(folder=files)
    before = pairs(pattern, out=out)
    assert len(before) >= 1
    (files / result).parent.mkdir(parents=True, exist_ok=True)
    (files / result).write_bytes(b"x")
    (files / out / "link.png").symlink_to(files / "photo.png")
    (files / "a/link.png").symlink_to(files / result)
    assert pairs(pattern, out=out) == before


def test_pattern_that_matches_only_results_is_rejected(files):
    (files / "out").mkdir()
    (files / "out/x.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"\*\*/x.png: matches no image or video \(.*\) outside out$"):
        find_jobs(["**/x.png"], Path("out"))
    for pattern in ("out/*.png", "out/**/x.png"):  # explicitly requested, so they are inputs
        with pytest.raises(UserError, match="-o: out/x.png is an input itself and would be replaced"):
            find_jobs([pattern], Path("out"))
    assert pairs("out/*.png", out="more") == [("out/x.png", "more/x.png")]


@pytest.mark.parametrize(
    ("text", "begin", "pattern"),
    [
        ("a/**/*.png", "a", ("**", "*.png")),
        ("n*.png", ".", ("n*.png",)),
        ("a", "a", ()),
        ("none/x.png", "none/x.png", ()),
        ("[1].png", "[1].png", ()),  # a file with that name exists
    ],
)
def test_split_pattern(files, text, begin, pattern):
    (files / "[1].png").write_bytes(b"")
    assert split_pattern(text) == ((files / begin).resolve(), pattern)


@pytest.mark.parametrize(
    ("name", "pattern", "wanted"),
    [
        ("a.png", "*.png", True),
        ("b/a.png", "*.png", False),
        ("a.png", "**/*.png", True),
        ("b/c/a.png", "**/*.png", True),
        ("b/c/a.png", "b/**", True),
        ("b/c/a.png", "**/c/a.*", True),
        ("b/c/a.png", "*/a.png", False),
        ("b/c/a.png", "b/?/[!b].png", True),
    ],
)
def test_matches_pattern_agrees_with_glob(folder, name, pattern, wanted):
    assert matches_pattern(name.split("/"), pattern.split("/")) == wanted
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    assert (name in glob.glob(pattern, recursive=True)) == wanted


@pytest.mark.parametrize(
    ("inputs", "out", "message"),
    [
        (["a/1.png", "c/1.png"], "out", "c/1.png: would be written to out/1.png, and so would a/1.png; restore them"),
        (["a", "c"], "out", "c/1.png: would be written to out/1.png, and so would a/1.png"),
        (["photo.jpg"], ".", "-o: photo.jpg is an input itself and would be replaced; choose another folder"),
        (["a"], "a", "-o: a/1.png is an input itself and would be replaced"),
        (["a", "c/1.png"], "c", "-o: c/1.png is an input itself"),
        (["foto.jpg"], "out", "foto.jpg: does not exist. Did you mean 'photo.jpg'?"),
        (["*.bmp"], "out", "*.bmp: matches no image or video (.bmp "),
        (["a/text.txt"], "out", "a/text.txt: is not an image or video by its name, expected one of .bmp "),
    ],
)
def test_invalid_inputs_are_rejected(files, inputs, out, message):
    with pytest.raises(UserError) as caught:
        find_jobs(inputs, Path(out))
    assert str(caught.value).startswith(message)


def test_broken_link_is_reported(files):
    (files / "lost.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"^lost.png: is a link to 'nowhere.png', which does not exist$"):
        find_jobs(["lost.png"], Path("out"))
    inside = r"^lost.png/a.png: does not exist \('lost.png' is a link to 'nowhere.png', which does not exist\)"
    with pytest.raises(UserError, match=inside):
        find_jobs(["lost.png/a.png"], Path("out"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_named_pipe_is_rejected_without_blocking(files):
    os.mkfifo("pipe.png")
    with pytest.raises(UserError, match="^pipe.png: is neither a file nor a folder, but a pipe, socket or device$"):
        find_jobs(["pipe.png", "photo.png"], Path("out"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("given", ["many", "many/*.png"])
def test_broken_links_and_pipes_of_a_folder_are_counted(files, capsys, given):
    Path("many").mkdir()
    for number in range(2):
        Path(f"many/{number}.png").symlink_to("nowhere")
    os.mkfifo("many/pipe.png")
    Path("many/note.txt").symlink_to("nowhere")  # not an image by its name
    shutil.copy("photo.png", "many/photo.png")
    assert [job.source.name for job in find_jobs([given], Path("out"))] == ["photo.png"]
    assert "left out 2 links to missing files, 1 pipe, socket or device\n" in capsys.readouterr().err


def test_both_files_that_differ_in_a_sharp_s_are_found_on_windows(files, monkeypatch):
    for name in ("Maße.png", "Masse.png"):
        shutil.copy("photo.png", name)
    monkeypatch.setattr(sys, "platform", "win32")
    assert {job.source.name for job in find_jobs(["Ma*.png"], Path("out"))} == {"Maße.png", "Masse.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="the name would be too long")
def test_folders_nested_deeper_than_the_recursion_limit(folder):
    inner = Path(*["d"] * 1100)
    try:
        for top in ("deep", "out"):
            make_folder(top / inner)
        ("deep" / inner / "a.png").write_bytes(b"x")
        (folder / "deep/d/b.png").write_bytes(b"x")
        assert pairs("deep") == [
            ("deep/d/b.png", "out/d/b.png"),
            (f"deep/{inner.as_posix()}/a.png", f"out/{inner.as_posix()}/a.png"),
        ]
    finally:  # shutil.rmtree, and so pytest's cleanup, may recurse for each folder
        subprocess.run(["rm", "-r", "deep", "out"], check=True)


def test_compare_image_does_not_replace_another_result(files):
    (files / "photo_compare.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="would be written to out/photo_compare.jpg, and so would photo.jpg"):
        find_jobs(["photo.jpg", "photo_compare.jpg"], Path("out"), compare=True)


def test_empty_folder_is_rejected(files):
    (files / "none").mkdir()
    with pytest.raises(UserError, match=r"none: no image or video in this folder \(\.bmp "):
        find_jobs(["none"], Path("out"))


@pytest.mark.parametrize(
    ("system", "one", "other", "same"),
    [
        ("darwin", "Caf\u00e9.png", "cafe\u0301.PNG", True),
        ("win32", "A.png", "a.PNG", True),
        ("win32", "\u00e9.png", "e\u0301.png", False),  # two files on NTFS
        ("win32", "Ma\u00dfe.png", "Masse.png", False),
        ("darwin", "Ma\u00dfe.png", "Masse.png", True),  # APFS may fold them to one
        ("linux", "A.png", "a.png", False),
        ("linux", "\u00e9.png", "e\u0301.png", False),
    ],
)
def test_path_key_follows_the_file_system_of_the_platform(monkeypatch, system, one, other, same):
    monkeypatch.setattr(jobs.sys, "platform", system)
    assert (jobs.path_key(one) == jobs.path_key(other)) == same
    assert jobs.is_within(f"/{one}/x", Path("/", other)) == same
    assert jobs.is_within(f"/{one}", "/") and not jobs.is_within(f"/{one}", f"/{one}")
    assert not jobs.is_within("/ab/c", "/a")


@pytest.mark.parametrize("inputs", [["a"], ["a/**/*.[Pp][Nn][Gg]"]])
def test_case_variants_of_results_are_not_inputs(files, monkeypatch, inputs):
    """If file names are case-insensitive, the output folder a/B is the existing folder a/b, which is not read."""
    monkeypatch.setattr(jobs.sys, "platform", "darwin")
    assert pairs(*inputs, out="a/B") == [("a/1.png", "a/B/1.png")]


def test_output_folder_that_cannot_be_created_is_rejected(files):
    with pytest.raises(UserError, match=r"-o: 'photo.jpg/out' cannot be created \(Not a directory\)"):
        make_folder(Path("photo.jpg/out"))
    with pytest.raises(UserError, match=r"-o: 'photo.jpg' cannot be created \(File exists\)"):
        make_folder(Path("photo.jpg"))


def test_read_only_output_folder_is_rejected(files, monkeypatch):
    (files / "out").mkdir(mode=0o555)
    if os.geteuid() == 0:  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(UserError, match=r"-o: 'out' cannot be written into \(permission denied\)"):
        make_folder(Path("out"))


def test_hidden_folders_are_skipped_unless_given(files, capsys):
    """For example, those of deleted images and of thumbnails."""
    before = pairs("a")
    for name in ("a/.Trash-1000/files/old.png", "a/b/.thumbnails/2.png"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_bytes(b"")
    assert pairs("a") == before
    assert pairs("a/.Trash-1000") == [("a/.Trash-1000/files/old.png", "out/files/old.png")]


def test_folders_matched_by_a_pattern_are_reported_as_skipped(files, capsys):
    assert pairs("a/*") == [("a/1.png", "out/1.png")]
    wanted = "note: a/*: left out 1 matching folder (as an input of its own it is read)\n"
    assert wanted in capsys.readouterr().err
    assert pairs("a/[bx]/**") == [("a/b/1.PNG", "out/1.PNG")]
    assert capsys.readouterr().err == ""


def test_unreadable_folder_is_reported(files, monkeypatch, capsys):
    original = os.scandir

    def scandir(path):
        if str(path).rstrip(os.sep).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert pairs("a") == [("a/1.png", "out/1.png")]
    assert "note: a: left out 1 folder that cannot be read (Permission denied)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^a/b: cannot be read \(Permission denied\)"):
        find_jobs(["a/b"], Path("out"))
