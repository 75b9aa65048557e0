// Found in place of that of CUDA.
#include "../cuda_runtime_on_host.hpp"
