import pytest

from tests.contract.trainer.rooms import bench, make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def place(tmp_path, base):
    return bench(tmp_path, base)
