"As test_distributed with two, for methods without options; in a file of its own, so that the two can run side by side."
import pytest, warm
from test_distributed import RUNS, assert_one, fit_all

@pytest.fixture(scope='module')
def three(tmp_path_factory):
    path = tmp_path_factory.mktemp('three')
    warm.group(fit_all, path, RUNS, n=3)
    return path

@pytest.mark.parametrize('name', RUNS)
def test_three_processes_are_one(name, three): assert_one(name, three, 3)
