import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import pytest
import torch
from helpers import tiny_runs
from helpers.precision import FullPrecision
from helpers.warm import WarmProcesses
from pytest_socket import socket_allow_hosts
from transformers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()


def pytest_addoption(parser):
    parser.addoption("--write-messages", action="store_true", help="write docs/bad-input.md anew, in one process")


@pytest.fixture(autouse=True)
def _offline():
    """No test reaches beyond this machine; processes of one run may talk over loopback."""
    socket_allow_hosts(["127.0.0.1", "::1", "0.0.0.0"], allow_unix_socket=True)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny LLaMA of random weights with a tokenizer of 64 words, as a Hugging Face folder."""
    return tiny_runs.save_model(tmp_path_factory.mktemp("base") / "llama", max_position_embeddings=128)


@pytest.fixture(scope="session")
def warm_processes(tmp_path_factory):
    warm = WarmProcesses(tmp_path_factory.mktemp("warm"))
    yield warm
    warm.close()


@pytest.fixture
def full_precision():
    """Models of double precision compute in it throughout, where Hugging Face's parts take float32."""
    with FullPrecision():
        yield
