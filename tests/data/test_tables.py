import datetime
import hashlib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathline.data import tables
from pathline.data.tables import read_table, restore, split_names, write_table

STRANGE = ["<b>a</b>", "two words", "with, comma", "two\nlines", 'a "quoted" one', "it's", "é€", "NA", "-x", " pad "]


def csv_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def npz_file(folder: Path, arrays: Mapping[str, Any]) -> Path:
    path = folder / "t.npz"
    np.savez(path, **arrays)
    return path


def npy_file(folder: Path, array: np.ndarray) -> Path:
    path = folder / "t.npy"
    np.save(path, array)
    return path


def parquet_file(folder: Path, frame: pd.DataFrame) -> Path:
    path = folder / "t.parquet"
    frame.to_parquet(path)
    return path


def refusal(path: Path, **options: Any) -> str:
    """The message without the file's name, which it must begin with; it must be one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (callers match the message)
        read_table(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


class TestRead:
    def test_csv(self, tmp_path: Path):
        path = csv_file(tmp_path, "n,x,ok,c\n1,0.1,True,u\n-2,1e-300,False,v\n")
        table = read_table(path, condition="c")
        assert table.columns == ("n", "x", "ok")
        assert table.dtypes == {"n": "int64", "x": "float64", "ok": "bool"}
        assert table.integers == (True, False, True)
        assert table.rows.tolist() == [[1, 0.1, 1], [-2, 1e-300, 0]]
        assert table.frame["c"].tolist() == ["u", "v"]
        assert table.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (table.condition, table.shape) == ("c", None)

    def test_selection(self, tmp_path: Path):
        path = csv_file(tmp_path, "a,b,c,text\n1,2,3,u\n4,5,6,v\n")
        assert read_table(path, columns=["c", "a"]).columns == ("c", "a")
        assert read_table(path, drop=["b", "text"]).columns == ("a", "c")
        assert read_table(path, columns=["c", "text", "a"], condition="text").columns == ("c", "a")
        assert read_table(path, columns=["a", "text", "b"], drop=["text", "a"]).columns == ("b",)
        assert list(read_table(path, drop=["text"], condition="text").frame) == ["a", "b", "c", "text"]

    @pytest.mark.parametrize(
        "text",
        [
            "\ufeffa,b\n1,2\n3,4\n",
            '\ufeff"a",b\n1,2\n3,4\n',
            "a,b\r\n1,2\r\n3,4\r\n",
            '"a","b"\n"1","2"\n3,4',
            "a,b\n1,2\n\n3,4\n\n",
            "a,b\n1,2,\n3,4,\n",
        ],
    )
    def test_dialects(self, tmp_path: Path, text: str):
        table = read_table(csv_file(tmp_path, text))
        assert table.columns == ("a", "b")
        assert table.rows.tolist() == [[1, 2], [3, 4]]

    @pytest.mark.parametrize("header", ["0,1,2", "2019,2020,2021"])
    def test_numbers_as_names(self, tmp_path: Path, header: str):
        assert read_table(csv_file(tmp_path, f"{header}\n1,2,3\n4,5,6\n")).columns == tuple(header.split(","))

    def test_integers(self, tmp_path: Path):
        path = csv_file(tmp_path, "a,b,c,d\n1,1.0,1.0,0.5\n99999999,2.0,99999999.0,1.0\n")
        assert read_table(path).integers == (True, True, False, False)

    def test_min_rows(self, tmp_path: Path):
        path = csv_file(tmp_path, "a\n1\n")
        assert len(read_table(path, min_rows=1).frame) == 1
        assert "has too few rows of data (1); it needs at least 2 rows" in refusal(path)

    def test_arrays(self, tmp_path: Path):
        assert read_table(npy_file(tmp_path, np.arange(3))).columns == ("x0",)
        big_endian = np.arange(6.0).reshape(3, 2).astype(">f4")
        table = read_table(npy_file(tmp_path, big_endian))
        assert table.dtypes == {"x0": "float32", "x1": "float32"}
        assert table.shape is None
        assert np.array_equal(table.rows, big_endian)
        table = read_table(npy_file(tmp_path, np.eye(3)))
        table.rows[:] = 7
        assert np.array_equal(table.rows, np.eye(3))
        images = np.arange(24, dtype="uint8").reshape(2, 3, 2, 2)
        table = read_table(npy_file(tmp_path, images))
        assert table.shape == (3, 2, 2)
        assert np.array_equal(table.rows.reshape(images.shape), images)
        assert read_table(tmp_path / "t.npy", drop=["x0"]).shape is None

    def test_several_arrays(self, tmp_path: Path):
        assert read_table(npz_file(tmp_path, {"a": np.zeros((3, 2))})).columns == ("x0", "x1")
        arrays = {"a": np.arange(3), "b": np.ones((3, 2)), "s": np.array(["u", "v", "w"])}
        table = read_table(npz_file(tmp_path, arrays), condition="s")
        assert table.columns == ("a", "b_0", "b_1")
        assert table.frame["s"].tolist() == ["u", "v", "w"]
        images = {"label": np.arange(3), "image": np.zeros((3, 2, 2))}
        table = read_table(npz_file(tmp_path, images), condition="label")
        assert table.columns == ("image_0", "image_1", "image_2", "image_3")
        assert table.shape == (2, 2)

    def test_parquet_types(self, tmp_path: Path):
        frame = pd.DataFrame(
            {
                "nullable": pd.array([1, 2], dtype="Int16"),
                "flag": pd.array([True, False], dtype="boolean"),
                "category": pd.Categorical([3, 5]),
                "byte": np.array([1, 255], dtype="uint8"),
                "half": np.array([1, 2], dtype="float32"),
            }
        )
        table = read_table(parquet_file(tmp_path, frame))
        assert table.dtypes == {
            "nullable": "int16", "flag": "bool", "category": "int64", "byte": "uint8", "half": "float32",
        }  # fmt: skip
        assert table.rows.tolist() == [[1, 1, 3, 1, 1], [2, 0, 5, 255, 2]]

    def test_parquet_index_is_a_column(self, tmp_path: Path):
        frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index([5, 6], name="id"))
        assert read_table(parquet_file(tmp_path, frame)).columns == ("id", "a")

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_strange_names_survive(self, tmp_path: Path, suffix: str):
        path = tmp_path / f"t{suffix}"
        write_table(path, pd.DataFrame(np.eye(len(STRANGE)), columns=STRANGE))
        table = read_table(path)
        assert table.columns == tuple(STRANGE)
        assert np.array_equal(table.rows, np.eye(len(STRANGE)))

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1), min_size=2, unique=True)
    )
    def test_any_names_survive_csv(self, tmp_path_factory: pytest.TempPathFactory, names: list[str]):
        path = tmp_path_factory.mktemp("names") / "t.csv"
        write_table(path, pd.DataFrame(np.eye(len(names)), columns=names))
        assert read_table(path, columns=names).columns == tuple(names)


class TestRefusals:
    def test_no_file(self, tmp_path: Path):
        assert refusal(tmp_path / "t.csv") == "no such file; check its name and folder"
        csv_file(tmp_path, "a\n1\n2\n")
        assert refusal(tmp_path / "tt.csv") == "no such file; did you mean t.csv?"
        assert refusal(tmp_path / "none" / "t.csv") == "no such file; check its name and folder"

    def test_no_table(self, tmp_path: Path):
        assert refusal(tmp_path) == "is a folder; name a file in it"
        (tmp_path / "t.txt").write_text("a\n1\n2\n")
        assert refusal(tmp_path / "t.txt") == "unknown suffix '.txt'; known are .csv, .parquet, .npy, .npz"

    @pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy", ".npz"])
    def test_empty_file(self, tmp_path: Path, suffix: str):
        (tmp_path / f"t{suffix}").touch()
        assert refusal(tmp_path / f"t{suffix}") == "is empty; it needs at least 2 rows of data"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("\n\n", "is empty; it needs a header and at least 2 rows of data"),
            ("a,b\n", "has too few rows of data (0); it needs at least 2 rows"),
            ("a,b\n1,2\n", "has too few rows of data (1); it needs at least 2 rows"),
            ("a,b,a\n1,2,3\n4,5,6\n", "several columns are called a; give each column a name of its own"),
            ("1.5,2\n1,2\n3,4\n", "its first line holds numbers (1.5, 2); put a line of names above it"),
            ("7\n8\n9\n", "its first line holds numbers (7); put a line of names above it"),
            ("a;b\n1;2\n3;4\n", "has the one column a;b; separate columns by ',', not ';'"),
            ("a,b\n1,2,3\n4,5,6\n", "row 1 has 3 values, the header 2 names; mend it (quote a comma)"),
            ("a,b\n\n1,2\n4,5,6\n", "row 2 has 3 values, the header 2 names; mend it (quote a comma)"),
            ("a,b\n1,2\n4\n5,6\n", "missing or infinite values: b (1 in all, the first in row 2); fill in or delete "
                "these rows, or leave the columns out: --drop b"),
            ("a,b\n1,2\n\xe9,3\n".encode("latin-1"), "line 3 is not UTF-8 text; save it as CSV in UTF-8"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not UTF-8 text; save it as CSV in UTF-8"),
            ("a,b\n1,2\n".encode("utf-16-le"), "is not UTF-8 text; save it as CSV in UTF-8"),
        ],
    )  # fmt: skip
    def test_csv(self, tmp_path: Path, text: str | bytes, message: str):
        assert refusal(csv_file(tmp_path, text)) == message

    def test_open_quote(self, tmp_path: Path):
        message = refusal(csv_file(tmp_path, 'a,b\n1,"2\n3,4\n'))
        assert message.startswith("cannot be read as .csv: ")
        assert message.endswith("write the file again")

    def test_nameless_column(self, tmp_path: Path):
        path = csv_file(tmp_path, ",a\n0,3\n1,4\n")
        assert "name it in the header, or leave it out: --drop 'Unnamed: 0'" in refusal(path)
        assert read_table(path, drop=["Unnamed: 0"]).columns == ("a",)

    def test_text_columns(self, tmp_path: Path):
        path = csv_file(tmp_path, "cut,price,color,clarity\nIdeal,1,E,SI2\nGood,2,F,VS1\n")
        assert refusal(path) == (
            "not numbers: cut, color, clarity (text); give numbers, or leave the columns out: --drop cut,color,clarity"
        )
        assert read_table(path, drop=["cut", "color", "clarity"]).columns == ("price",)
        assert "give at least one column of numbers" in refusal(path, columns=["cut", "color"])

    def test_mixed_column(self, tmp_path: Path):
        path = csv_file(tmp_path, "a,b,c\n1,2,u\n3,4,v\n5,?,w\n7,x,u\n9,10,v\n11,12,\n")
        assert "not numbers: b ('?' in row 3), c (text); " in refusal(path)

    def test_columns_that_are_no_numbers(self, tmp_path: Path):
        frame = pd.DataFrame(
            {
                "a": [1, 2],
                "time": pd.to_datetime(["2020-01-01", "2020-01-02"]),
                "day": [datetime.date(2020, 1, 1)] * 2,
                "list": [[1], [2]],
                "kind": pd.Categorical(["u", "v"]),
            }
        )
        message = refusal(parquet_file(tmp_path, frame))
        assert "time (dates), day (date), list (ndarray), kind (text)" in message
        assert message.endswith("--drop time,day,list,kind")

    @pytest.mark.parametrize("missing", ["", "NA", "NaN", "inf", "-inf"])
    def test_missing_values(self, tmp_path: Path, missing: str):
        path = csv_file(tmp_path, f"a,b,c\n1,2,3\n4,5,6\n7,{missing},8\n9,{missing},10\n")
        assert refusal(path) == (
            "missing or infinite values: b (2 in all, the first in row 3); "
            "fill in or delete these rows, or leave the columns out: --drop b"
        )
        assert refusal(path, columns=["b"]).endswith("; fill in or delete these rows")
        assert "--condition b: missing or infinite values (2 in all, the first in row 3;" in refusal(
            path, condition="b"
        )

    @pytest.mark.parametrize("dtype", ["Int64", "boolean", "Float32"])
    def test_missing_nullable(self, tmp_path: Path, dtype: str):
        frame = pd.DataFrame({"a": [1, 2], "b": pd.array([1, None], dtype=dtype)})
        assert "b (1 in all, the first in row 2)" in refusal(parquet_file(tmp_path, frame))

    def test_dates_as_condition(self, tmp_path: Path):
        frame = pd.DataFrame({"a": [1, 2], "t": pd.to_datetime(["2020-01-01", "2020-01-02"])})
        message = refusal(parquet_file(tmp_path, frame), condition="t")
        assert message == "--condition t holds dates; write them as text or real numbers"

    @pytest.mark.parametrize("options", [{"columns": ["a", "prize"]}, {"drop": ["prize"]}, {"condition": "prize"}])
    def test_unknown_names(self, tmp_path: Path, options: dict):
        path = csv_file(tmp_path, "a,price\n1,2\n3,4\n")
        option = f"--{next(iter(options))}"
        assert refusal(path, **options) == (f"{option}: no column prize; did you mean price?; its columns are a, price")

    def test_nothing_left(self, tmp_path: Path):
        path = csv_file(tmp_path, "a,b\n1,2\n3,4\n")
        message = "no column is left as a feature; keep at least one of a, b"
        assert refusal(path, drop=["a", "b"]) == message
        assert refusal(path, drop=["a"], condition="b") == message

    @pytest.mark.parametrize(
        "array",
        [np.array([1j, 2]), np.array(["a", "b"]), np.array(3.0), np.zeros(2, "M8[D]"), np.zeros(2, [("a", "i4")])],
    )
    def test_arrays_of_other_things(self, tmp_path: Path, array: np.ndarray):
        message = refusal(npy_file(tmp_path, array))
        assert message.startswith(f"its array has dtype {array.dtype} and shape {array.shape}; save real numbers")

    def test_object_arrays(self, tmp_path: Path):
        array = np.array([{}, 1], dtype=object)
        for path in npy_file(tmp_path, array), npz_file(tmp_path, {"a": array}):
            assert "holds Python objects, which are not read" in refusal(path)

    def test_empty_arrays(self, tmp_path: Path):
        assert "too few rows of data (0)" in refusal(npy_file(tmp_path, np.zeros((0, 3))))
        assert "has no columns" in refusal(npy_file(tmp_path, np.zeros((3, 0))))
        assert "holds no array" in refusal(npz_file(tmp_path, {}))
        assert "has no columns" in refusal(parquet_file(tmp_path, pd.DataFrame()))

    def test_arrays_that_do_not_fit(self, tmp_path: Path):
        lengths = {"a": np.zeros(3), "b": np.zeros((2, 2))}
        assert "its arrays differ in length (a 3, b 2 rows)" in refusal(npz_file(tmp_path, lengths))
        names = {"a_0": np.zeros(3), "a": np.zeros((3, 2))}
        assert "several columns are called a_0" in refusal(npz_file(tmp_path, names))

    def test_duplicate_parquet_columns(self, tmp_path: Path):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table([[1, 2], [3, 4]], names=["a", "a"]), tmp_path / "t.parquet")
        assert "several columns are called a;" in refusal(tmp_path / "t.parquet")

    @pytest.mark.parametrize("suffix", [".parquet", ".npy", ".npz"])
    @pytest.mark.parametrize("damage", ["half", "junk", "flips"])
    def test_damaged(self, tmp_path: Path, suffix: str, damage: str):
        rng = np.random.default_rng(0)
        frame = pd.DataFrame(rng.normal(size=(100, 3)), columns=list("abc"))
        whole = {".parquet": parquet_file, ".npy": npy_file, ".npz": npz_file}[suffix](tmp_path, frame)
        content = bytearray(whole.read_bytes())
        if damage == "half":
            content = content[: len(content) // 2]
        elif damage == "junk":
            content = bytearray(rng.bytes(500))
        else:
            content[:60] = bytes(60)
        whole.write_bytes(content)
        message = refusal(whole)
        assert message.startswith((f"cannot be read as {suffix}: ", "holds Python objects"))
        assert "write the file again" in message or "save plain numbers" in message

    def test_no_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = parquet_file(tmp_path, pd.DataFrame({"a": [1, 2]}))
        monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
        assert refusal(path) == 'reading .parquet needs pyarrow: pip install "pathline[parquet]"'
        with pytest.raises(ValueError, match=r'writing .parquet needs pyarrow: pip install "pathline\[parquet\]"'):
            write_table(tmp_path / "u.parquet", np.zeros((2, 2)))

    def test_the_remedy_is_what_a_shell_takes(self, tmp_path: Path):
        frame = pd.DataFrame({name: ["u", "v"] for name in STRANGE}).assign(a=[1, 2])
        path = tmp_path / "t.csv"
        write_table(path, frame)
        option = refusal(path).rpartition("--drop ")[2]
        command = "import sys; sys.stdout.buffer.write(sys.argv[1].encode())"
        shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(command)} {option}"
        text = subprocess.run(["bash", "-c", shell], capture_output=True, check=True).stdout.decode()
        assert split_names(text) == tuple(STRANGE)
        assert read_table(path, drop=split_names(text)).columns == ("a",)


class TestWrite:
    def test_round_trip(self, tmp_path: Path):
        rng = np.random.default_rng(0)
        frame = pd.DataFrame(
            {"x": rng.normal(size=50) * 1e-9, "n": rng.integers(0, 9, 50), "ok": rng.normal(size=50) > 0}
        )
        for suffix in ".csv", ".parquet":
            write_table(tmp_path / f"t{suffix}", frame)
            pd.testing.assert_frame_equal(read_table(tmp_path / f"t{suffix}").frame, frame)
        write_table(tmp_path / "t.npy", frame)
        assert np.array_equal(np.load(tmp_path / "t.npy"), frame.to_numpy(np.float64))

    def test_arrays(self, tmp_path: Path):
        images = np.arange(24.0).reshape(2, 3, 4)
        write_table(tmp_path / "t.npy", images)
        assert np.array_equal(np.load(tmp_path / "t.npy"), images)
        write_table(tmp_path / "t.csv", images)
        assert np.array_equal(read_table(tmp_path / "t.csv").rows, images.reshape(2, 12))

    @pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
    def test_keeps_what_exists(self, tmp_path: Path, suffix: str):
        path = tmp_path / f"t{suffix}"
        path.write_text("mine")
        with pytest.raises(ValueError, match=rf"t\{suffix} exists; pass --force to replace it$"):
            write_table(path, np.eye(2))
        assert path.read_text() == "mine"
        write_table(path, np.eye(2), force=True)
        assert np.array_equal(read_table(path).rows, np.eye(2))
        assert [other.name for other in tmp_path.iterdir()] == [path.name]

    def test_appears_whole_or_not_at_all(self, tmp_path: Path):
        path = tmp_path / "t.npy"
        path.write_text("mine")
        frame = pd.DataFrame({"a": [1], "s": ["u"]})
        with pytest.raises(
            ValueError, match=r"t\.npy: \.npy holds numbers alone, s does not; write \.csv or \.parquet"
        ):
            write_table(path, frame, force=True)
        with pytest.raises(ValueError, match="Object arrays"):
            write_table(path, np.array([None]), force=True)
        assert path.read_text() == "mine"
        assert list(tmp_path.iterdir()) == [path]

    def test_refusals(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"unknown suffix '\.npz'; known are \.csv, \.parquet, \.npy$"):
            write_table(tmp_path / "t.npz", np.eye(2))
        with pytest.raises(ValueError, match=r"the folder .*none does not exist; make it first"):
            write_table(tmp_path / "none" / "t.csv", np.eye(2))
        (tmp_path / "t.csv").mkdir()
        with pytest.raises(ValueError, match="is a folder; name a file in it"):
            write_table(tmp_path / "t.csv", np.eye(2), force=True)


class TestRestore:
    def test_dtypes(self):
        dtypes = {"f": "float32", "b": "bool", "u": "uint8", "i": "int64", "U": "uint64"}
        rows = np.array([[0.1, 1, 3, -5, 7], [1e30, -2, 300, 1e300, 1e300], [0, 0.6, -1, -1e300, 2.6]])
        frame = restore(rows, dtypes)
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == dtypes
        assert frame["b"].tolist() == [True, False, True]
        assert frame["u"].tolist() == [3, 255, 0]
        assert frame["i"].tolist() == [-5, 2**63 - 1024, -(2**63)]
        assert frame["U"].tolist() == [7, 2**64 - 2048, 3]

    def test_inverse_of_rows(self, tmp_path: Path):
        table = read_table(csv_file(tmp_path, "n,x,ok\n1,0.1,True\n-2,1e-300,False\n"))
        pd.testing.assert_frame_equal(restore(table.rows, table.dtypes), table.frame)

    def test_shape(self):
        with pytest.raises(ValueError, match=r"rows must have shape \(n, 1\), one column per name, got \(2, 2\)"):
            restore(np.eye(2), {"a": "bool"})
