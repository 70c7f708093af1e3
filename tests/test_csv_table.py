"""The CSV files of an experiment: rows, new columns, resuming after a kill."""

from restormixer_arch.training.reports import Table


def test_rows_are_appended_and_new_columns_come_at_the_right(tmp_path):
    path = tmp_path / "x.csv"
    table = Table(path, 0)
    assert not path.exists()
    table.add({"iteration": 2, "psnr": 24.5})
    table.add({"iteration": 4, "psnr": 25.0})
    assert path.read_text().split() == ["iteration,psnr", "2,24.5", "4,25.0"]
    table.add({"iteration": 6, "psnr": 26.0, "ssim": 0.5})
    assert path.read_text().split() == ["iteration,psnr,ssim", "2,24.5,", "4,25.0,", "6,26.0,0.5"]
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


def test_a_resumed_training_drops_what_it_does_again(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("iteration,dataset,psnr,ssim\n2,rain,24.5,0.5\n4,rain,nan,\n6,rain,26.0,0.7\n8,ra")
    table = Table(path, 5)
    assert path.read_text().split() == ["iteration,dataset,psnr,ssim", "2,rain,24.5,0.5", "4,rain,nan,"]
    assert table.rows[0] == {"iteration": 2, "dataset": "rain", "psnr": 24.5, "ssim": 0.5}
    table.add({"iteration": 6, "dataset": "rain", "psnr": 27.0, "ssim": 0.8})
    assert path.read_text().split()[-1] == "6,rain,27.0,0.8"


def test_a_file_that_is_no_table_of_ours_is_started_again(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("half a li")
    Table(path, 5).add({"iteration": 6, "psnr": 27.0})
    assert path.read_text().split() == ["iteration,psnr", "6,27.0"]


def test_a_row_takes_the_place_of_its_like(tmp_path):
    table = Table(tmp_path / "v.csv", 0)
    for iteration, dataset, psnr in ((2, "a", 20.0), (2, "b", 21.0), (2, "a", 22.5)):
        table.add({"iteration": iteration, "dataset": dataset, "psnr": psnr})
    assert (tmp_path / "v.csv").read_text().split() == ["iteration,dataset,psnr", "2,b,21.0", "2,a,22.5"]
