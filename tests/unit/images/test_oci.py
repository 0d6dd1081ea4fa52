"""Image layouts: the same input gives the same bytes, in the form that KubeVirt and CDI want."""

import hashlib
import json
import tarfile

import pytest

from images import oci, roottree
from kvedge import errors


def _disk(tmp_path, name):
    disk = tmp_path / "disk.qcow2"
    disk.write_bytes(b"QFI\xfb" + bytes(5000))
    return oci.write_container_disk(
        disk, tmp_path / name, arch="amd64", epoch=1_700_000_000, labels={"a": "b"}
    )


def test_container_disk_is_one_readable_file(tmp_path):
    """The layer holds disk/disk.img only, readable by KubeVirt's user, as an uncompressed tar."""
    layout = _disk(tmp_path, "one")
    (layer,) = layout.manifest["layers"]
    with tarfile.open(layout.blob(layer["digest"])) as tar:
        assert [(m.name, m.uid, m.gid, m.mode) for m in tar] == [
            ("disk", 107, 107, 0o555),
            ("disk/disk.img", 107, 107, 0o444),
        ]
    config = json.loads(layout.blob(layout.manifest["config"]["digest"]).read_bytes())
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]


def test_every_blob_has_its_digest(tmp_path):
    """File names, descriptors and content agree, and the layout reads back."""
    layout = _disk(tmp_path, "one")
    for blob in (layout.path / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert oci.read_layout(layout.path) == layout


def test_same_input_same_digest(tmp_path):
    """Two layouts of one disk are the same image."""
    assert _disk(tmp_path, "one").digest == _disk(tmp_path, "two").digest


def test_container_image_has_its_layers_in_order(tmp_path):
    """Layers that were written before are linked into the image's layout."""

    def layer(name):
        def fill(sink):
            import io

            roottree.merge(
                io.BytesIO(), sink, members=[roottree.file(name, name)], amend={}, epoch=0
            )

        folder = tmp_path / name
        return oci.write_layer(folder, fill), folder

    layers = [layer("a"), layer("b")]
    config = oci.ContainerConfig(entrypoint=("/a",), user="65532", env=("A=b",))
    layout = oci.write_image(
        tmp_path / "image", layers, arch="amd64", epoch=0, config=config, labels={}
    )
    assert [one["digest"] for one in layout.manifest["layers"]] == [b.digest for b, _ in layers]
    run = json.loads(layout.blob(layout.manifest["config"]["digest"]).read_bytes())["config"]
    assert run["Entrypoint"] == ["/a"]
    assert run["User"] == "65532"


def test_a_damaged_layout_is_told(tmp_path):
    """A manifest that does not match its digest is refused."""
    layout = _disk(tmp_path, "one")
    layout.blob(layout.digest).write_bytes(b"{}")
    with pytest.raises(errors.KvedgeError, match="cannot read image layout"):
        oci.read_layout(layout.path)


def test_documents_are_attached_with_the_image_as_subject(tmp_path):
    """A bill of materials is an artifact of its own that names the image, whose digest stays."""
    layout = _disk(tmp_path, "one")
    oci.attach(layout, {"application/spdx+json": b"{}"}, epoch=0)
    read = oci.read_layout(layout.path)
    assert read.digest == layout.digest
    (descriptor,) = read.attached
    manifest = json.loads(read.blob(descriptor["digest"]).read_bytes())
    assert manifest["subject"]["digest"] == layout.digest
    assert manifest["artifactType"] == "application/spdx+json"
