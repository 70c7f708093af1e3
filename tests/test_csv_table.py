"""CSV files of an experiment: rows, new columns, and resuming after the process was killed."""

from restormixer_arch.training.reports import Table


def test_rows_are_appended_and_new_columns_added_on_the_right(tmp_path):
    path = tmp_path / "x.csv"
    table = Table(path, 0)
    assert not path.exists()
    table.add({"iteration": 2, "psnr": 24.5})
    table.add({"iteration": 4, "psnr": 25.0})
    assert path.read_text().split() == ["iteration,psnr", "2,24.5", "4,25.0"]
    table.add({"iteration": 6, "psnr": 26.0, "ssim": 0.5})
    assert path.read_text().split() == ["iteration,psnr,ssim", "2,24.5,", "4,25.0,", "6,26.0,0.5"]
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


def test_resume_drops_rows_after_its_iteration(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("iteration,dataset,psnr,ssim\n2,rain,24.5,0.5\n4,rain,nan,\n6,rain,26.0,0.7\n8,ra")
    table = Table(path, 5)
    assert path.read_text().split() == ["iteration,dataset,psnr,ssim", "2,rain,24.5,0.5", "4,rain,nan,"]
    assert table.rows[0] == {"iteration": 2, "dataset": "rain", "psnr": 24.5, "ssim": 0.5}
    table.add({"iteration": 6, "dataset": "rain", "psnr": 27.0, "ssim": 0.8})
    assert path.read_text().split()[-1] == "6,rain,27.0,0.8"


def test_file_without_a_valid_table_is_overwritten(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("half a li")
    Table(path, 5).add({"iteration": 6, "psnr": 27.0})
    assert path.read_text().split() == ["iteration,psnr", "6,27.0"]


def test_row_replaces_the_row_of_the_same_iteration_and_dataset(tmp_path):
    table = Table(tmp_path / "v.csv", 0)
    for iteration, dataset, psnr in ((2, "a", 20.0), (2, "b", 21.0), (2, "a", 22.5)):
        table.add({"iteration": iteration, "dataset": dataset, "psnr": psnr})
    assert (tmp_path / "v.csv").read_text().split() == ["iteration,dataset,psnr", "2,b,21.0", "2,a,22.5"]
