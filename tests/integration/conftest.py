import pytest

from tests.integration import tiny


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Glob of two shards with 10 mixed records."""
    return tiny.write(tmp_path_factory.mktemp("shards"), tiny.MIXED, maxcount=6)
