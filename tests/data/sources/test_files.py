import os
import pickle
import threading

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmax.data.sources.files import OpenFiles, Ranges, braces, cache_folder, find, join, local, parent, read_bytes
from vlmax.errors import InputError


def test_braces_are_written_out():
    assert braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert braces("{x,y}-{0..1}") == ["x-0", "x-1", "y-0", "y-1"]
    assert braces("plain{.tar") == ["plain{.tar"]
    assert len(braces("cc-{00000..00331}.tar")) == 332


@pytest.mark.parametrize("root", ["", "file://", "memory://"])
def test_find_takes_paths_globs_and_lists_in_order_and_once(tmp_path, root):
    base = f"memory://found{tmp_path}" if root == "memory://" else f"{root}{tmp_path}"
    for name in ("b-1.x", "b-0.x", "a.x", "c.y"):
        with fsspec.open(f"{base}/{name}", "wb") as out:
            out.write(b"abc")
    found = find((f"{base}/b-*.x", f"{base}/a.x", f"{base}/b-{{0..1}}.x"), "s")
    assert [f.path.rsplit("/", 1)[1] for f in found] == ["b-0.x", "b-1.x", "a.x"]
    assert all(f.size == 3 and f.modified for f in found)
    assert read_bytes(found[0].path, 1, 1) == b"b"
    assert Ranges([f.path for f in found]).read(2, 1, 100) == b"bc"


@pytest.mark.parametrize("root", ["", "memory://"])
def test_a_path_that_is_wrong_is_named_with_its_field(tmp_path, root):
    base = f"{root}{tmp_path}"
    with fsspec.open(f"{base}/empty.tar", "wb"):
        pass
    for paths, problem in [
        ((), "is empty"),
        (("",), "is empty"),
        (f"{base}/no.tar", "no.tar is missing"),
        (f"{base}/*.zip", "no file matches"),
        (f"{base}/empty.tar", "0 bytes"),
        ((f"{base}/no-{{0..3}}.tar",), "no-0.tar is missing"),
    ]:
        with pytest.raises(InputError, match=problem) as error:
            find(paths, "laion", "paths")
        assert "'laion'" in str(error.value) and "`paths`" in str(error.value)
    with pytest.raises(InputError, match="is a folder"):
        find(str(tmp_path), "s")
    with pytest.raises(InputError, match=r"cannot be (read|listed)"):
        find("nosuchstore://bucket/a*.tar" if root else "nosuchstore://bucket/a.tar", "s")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "secret.tar"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(InputError, match="may not be read"):
        find(str(path), "s")


def test_join_and_parent_work_for_paths_and_urls(tmp_path):
    assert join("gs://b/d", "x/y.jpg") == "gs://b/d/x/y.jpg"
    assert join("gs://b/d", "/abs.jpg") == "/abs.jpg"
    assert join("/d", "s3://b/y.jpg") == "s3://b/y.jpg"
    assert join("/d/e", "y.jpg") == "/d/e/y.jpg"
    assert parent("gs://b/d/x.tar") == "gs://b/d" and parent("/d/x.tar") == "/d"
    assert local("file:///a/b") == "/a/b" and local("~").startswith("/")


def test_few_files_stay_open_and_pickling_leaves_them(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(20)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%03d" % i)
    ranges = Ranges([str(p) for p in paths], limit=4)
    assert [ranges.read(i, 0, 3) for i in range(20)] == [b"%03d" % i for i in range(20)]
    assert len(ranges._open) == 4
    copy = pickle.loads(pickle.dumps(ranges))
    assert len(copy._open) == 0 and copy.read(7, 1, 2) == b"07"


def test_ranges_are_right_when_threads_push_each_others_files_out(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(12)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%04d" % i * 100)
    ranges, wrong = Ranges([str(p) for p in paths], limit=2), []

    def read(seed):
        for step in range(300):
            i = (seed * 7 + step * 5) % 12
            if ranges.read(i, 4 * (step % 100), 4) != b"%04d" % i:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(s,)) for s in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_read_beyond_the_end_is_short_and_takes_no_room(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    ranges = Ranges([str(path)])
    assert ranges.read(0, 1, 1 << 50) == b"bc"
    assert ranges.read(0, 100, 5) == b""


def test_what_an_object_store_refuses_is_asked_for_again(monkeypatch):
    store = fsspec.filesystem("memory")
    store.pipe("/again", b"abcdef")
    calls, real = [], type(store).cat_file

    def cat_file(self, path, start=None, end=None):
        calls.append(path)
        if len(calls) < 3:
            raise OSError("503 slow down")
        return real(self, path, start=start, end=end)

    monkeypatch.setattr(type(store), "cat_file", cat_file)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert read_bytes("memory://again", 2, 3) == b"cde"
    assert len(calls) == 3


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_open_files_is_a_cache_of_the_latest(keys, limit):
    cache, latest = OpenFiles(limit), []
    for key in keys:
        assert cache.get(key, lambda key=key: -key) == -key
        latest = [k for k in latest if k != key][-(limit - 1) :] if limit > 1 else []
        latest.append(key)
    made = []
    for key in latest:
        cache.get(key, lambda key=key: made.append(key))
    assert not made and len(cache) <= limit


def test_cache_folder_follows_the_environment(monkeypatch, cache):
    assert cache_folder() == str(cache)
    monkeypatch.delenv("VLMAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == "/x/vlmax"
