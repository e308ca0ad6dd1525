"""transformers without its progress bars and log lines."""

import pytest

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> None:
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
