"""Eight virtual CPU devices, no silent rank promotion, and warnings as errors."""

import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Tests compile many small programs and run each once: a quarter of the time to compile is worth slower programs.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TQDM_DISABLE", "1")

import jax
from guarded import GUARDED
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests run the same small programs: what one has compiled, the next one loads.
if "SYNERGEN_TESTS_CACHE" not in os.environ:  # the first process; workers that it starts share it
    cache = tempfile.TemporaryDirectory(prefix="synergen-tests-", ignore_cleanup_errors=True)
    os.environ["SYNERGEN_TESTS_CACHE"] = cache.name
jax.config.update("jax_compilation_cache_dir", os.environ["SYNERGEN_TESTS_CACHE"])
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["SYNERGEN_TESTS_CACHE"]  # of programs that tests start
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
# Shapes in the signatures of the pure functions are checked at run time.
install_import_hook(list(GUARDED), "beartype.beartype")
