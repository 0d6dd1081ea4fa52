"""Trees as tar streams: untouched records go through byte for byte."""

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from images import roottree

LONG = "d/" + "n" * 150


def _tar(entries, fmt=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt) as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


def _info(name, kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def _sample():
    capability = {"SCHILY.xattr.security.capability": "\x01\x02"}
    return [
        (_info("./"), b""),
        (_info("./d", tarfile.DIRTYPE, mode=0o700, uid=5), b""),
        (_info("./d/a", mode=0o640), b"old"),
        (_info("./d/hard", tarfile.LNKTYPE, linkname="./d/a"), b""),
        (_info("./d/ping", pax_headers=capability), b"x" * 600),
        (_info(f"./{LONG}"), b"long"),
        (_info("./d/null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (_info("./l", tarfile.SYMTYPE, linkname="d/a"), b""),
    ]


def _merged(members=(), amend=None, drop=()):
    out = io.BytesIO()
    roottree.merge(_tar(_sample()), out, members=members, amend=amend or {}, epoch=7, drop=drop)
    out.seek(0)
    return tarfile.open(fileobj=out)


def test_untouched_trees_stay_the_same():
    """Without members the stream's records are the same bytes."""
    out = io.BytesIO()
    roottree.merge(_tar(_sample()), out, members=[], amend={}, epoch=7)
    assert out.getvalue().rstrip(b"\0") == _tar(_sample()).getvalue().rstrip(b"\0")


def test_keeps_what_tar_can_hold():
    """Hard links, capabilities, device nodes, long names and owners are kept."""
    tree = _merged([roottree.file("new/deep/file", "x", mode=0o755, uid=3)])
    assert tree.getmember("./d/hard").islnk()
    assert tree.getmember("./d/null").ischr()
    assert tree.getmember("./d/ping").pax_headers["SCHILY.xattr.security.capability"] == "\x01\x02"
    assert tree.extractfile(f"./{LONG}").read() == b"long"
    assert tree.getmember("./d").uid == 5
    made = tree.getmember("./new/deep/file")
    assert (made.mode, made.uid, made.mtime) == (0o755, 3, 7)
    assert tree.getmember("./new").mode == 0o755


def test_replaces_amends_and_drops():
    """A member replaces a file, a function rewrites one, a prefix leaves some out."""
    tree = _merged(
        [roottree.file("l", "now a file")],
        {"d/a": lambda old: old + b" and new" * 100},
        drop=("d/pi",),
    )
    assert tree.extractfile("./l").read() == b"now a file"
    assert tree.extractfile("./d/a").read() == b"old" + b" and new" * 100
    assert tree.getmember("./d/a").mode == 0o640
    assert "./d/ping" not in tree.getnames()


def test_a_kept_folder_keeps_its_owner():
    """A folder that is only asked for keeps what its package gave it; a given mode wins."""
    assert _merged([roottree.directory("d", mode=roottree.KEEP)]).getmember("./d").mode == 0o700
    assert _merged([roottree.directory("d", mode=0o711)]).getmember("./d").mode == 0o711
    assert _merged([roottree.directory("e", mode=roottree.KEEP)]).getmember("./e").mode == 0o755


def test_reads_wanted_files():
    """Files and link targets come out by path, the rest is skipped."""
    found = roottree.read(_tar(_sample()), lambda path: path in {"d/a", "l"})
    assert found == {"d/a": b"old", "l": b"-> d/a"}


NAMES = st.text("abcdef/", min_size=1, max_size=40).filter(
    lambda name: all(part for part in name.split("/"))
)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=8))
def test_members_come_out_as_they_went_in(files: dict[str, bytes]):
    """Any set of files that can live together is written so that tar reads the same."""
    files = {
        name: data
        for name, data in files.items()
        if not any(other.startswith(f"{name}/") for other in files)
    }
    out = io.BytesIO()
    members = [roottree.file(name, data) for name, data in files.items()]
    roottree.merge(io.BytesIO(), out, members=members, amend={}, epoch=0)
    out.seek(0)
    tree = tarfile.open(fileobj=out)  # noqa: SIM115 - in memory
    assert {
        one.name.removeprefix("./"): tree.extractfile(one).read() for one in tree if one.isfile()
    } == files
