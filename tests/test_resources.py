import pytest
from detectron2.utils.file_io import PathManager

from blockcopy_d2 import resources
from blockcopy_d2.resources import config_path, shipped_configs


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "tiny.pth").write_bytes(b"content")
    monkeypatch.setattr(resources, "shipped_folder", lambda name: tmp_path / name)
    return folder


def test_config_of_the_package_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_configs()
    for name in shipped_configs():
        assert config_path(name).endswith(f"configs/{name}")


def test_a_file_goes_before_a_config_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = shipped_configs()[0]
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text("VERSION: 2\n")
    assert config_path(name) == name


def test_config_of_the_model_zoo_is_found():
    path = config_path("Cityscapes/mask_rcnn_R_50_FPN.yaml")
    assert "model_zoo" in path and path.endswith("Cityscapes/mask_rcnn_R_50_FPN.yaml")


@pytest.mark.parametrize("name", ["Cityscapes/mask_rcnn_R50_FPN.yaml", "mask_rcnn_R_50_FPN.yaml"])
def test_unknown_config_names_near_matches(name):
    with pytest.raises(FileNotFoundError, match=r"mean .*Cityscapes/mask_rcnn_R_50_FPN\.yaml"):
        config_path(name)


def test_weights_are_found_by_name(weights_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = "blockcopy://tiny.pth"
    assert PathManager.get_local_path(path) == str(weights_folder / "tiny.pth")
    assert PathManager.isfile(path) and PathManager.exists(path)
    with PathManager.open(path, "rb") as file:
        assert file.read() == b"content"


def test_missing_weights_are_named_with_what_is_there(weights_folder):
    assert not PathManager.isfile("blockcopy://other.pth")
    with pytest.raises(FileNotFoundError, match=r"blockcopy://other\.pth.*tiny\.pth"):
        PathManager.get_local_path("blockcopy://other.pth")
