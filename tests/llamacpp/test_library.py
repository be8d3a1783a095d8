"""llama.cpp's functions are imported alone, and its CPU backend is loaded once, also in a build that has several."""

import subprocess
import sys

from edgetune.llamacpp import library


def test_one_backend_is_registered():
    llama = library.load()
    counted = llama._lib.ggml_backend_reg_count
    assert counted() == 1
    library._pick_variant(llama._lib)
    assert counted() == 1
    assert b"CPU" in llama.llama_print_system_info()


def test_classes_that_are_not_used_are_not_imported_and_are_there_for_others():
    code = """if True:
        import sys
        from edgetune.llamacpp import library
        library.load()
        print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("llama_cpp", "diskcache", "sqlite3")))
        import llama_cpp
        print(llama_cpp.llama_cpp.llama_print_system_info() == library.load().llama_print_system_info())
        print(llama_cpp.Llama.__name__)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["", "True", "Llama"], done.stderr
