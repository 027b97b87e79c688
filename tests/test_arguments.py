import pytest
import torch

from mmssl.device import fast_bf16


@pytest.mark.parametrize(
    ("cpu", "fast"),
    [
        ({"cpu_name": "INTEL(R) XEON(R)", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "INTEL(R) XEON(R)", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_bf16_where_a_cpu_computes_it_fast(monkeypatch, cpu, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert fast_bf16(use_cpu=True) is fast
