"""llama.cpp's CPU backend is loaded once, in a build that has it whole and in one that picks among several."""

from edgetune.llamacpp import library


def test_one_backend_is_registered():
    llama = library.load()
    counted = llama.llama_cpp._lib.ggml_backend_reg_count
    assert counted() == 1
    library._pick_variant(llama.llama_cpp._lib)
    assert counted() == 1
    assert b"CPU" in llama.llama_print_system_info()
