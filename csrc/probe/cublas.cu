#include "probe/cublas.hpp"

#if defined(__linux__)
#include <dlfcn.h>
#endif

#include <array>
#include <cstdlib>

namespace pshard {
namespace {

constexpr std::array<const char*, 3> kNames{"libcublas.so.13", "libcublas.so.12", "libcublas.so"};

// Values of cuBLAS's and CUDA's enumerations, from their documentation.
constexpr int kSuccess = 0;
constexpr int kPlain = 0, kTransposed = 1;  // cublasOperation_t
constexpr int kFloat = 0, kHalf = 2;        // cudaDataType_t
constexpr int kComputeFloat = 68;           // CUBLAS_COMPUTE_32F
constexpr int kDefaultAlgorithm = -1;       // CUBLAS_GEMM_DEFAULT

#if defined(__linux__)
void* open_library() {
  if (const char* named = std::getenv("PSHARD_CUBLAS"); named != nullptr && *named != '\0') return dlopen(named, RTLD_NOW | RTLD_LOCAL);
  for (const char* name : kNames) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  return nullptr;
}
void* function_of(void* library, const char* name) { return dlsym(library, name); }
#else
void* open_library() { return nullptr; }
void* function_of(void*, const char*) { return nullptr; }
#endif

void require_success(int status, const char* call) {
  if (status != kSuccess) throw GpuError(std::string(call) + ": cuBLAS status " + std::to_string(status));
}

}  // namespace

struct Cublas::Functions {
  int (*create)(void**) = nullptr;
  int (*destroy)(void*) = nullptr;
  int (*set_stream)(void*, GpuStream) = nullptr;
  int (*multiply)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*, int, int,
                  int, int) = nullptr;

  explicit Functions(void* library) {
    find(library, "cublasCreate_v2", create);
    find(library, "cublasDestroy_v2", destroy);
    find(library, "cublasSetStream_v2", set_stream);
    find(library, "cublasGemmEx", multiply);
  }

 private:
  template <typename Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(function_of(library, name));
    if (function == nullptr) throw GpuError(std::string("the cuBLAS that was found has no ") + name);
  }
};

// The library stays loaded: its handles may outlive any one of these.
Cublas::Cublas() {
  void* library = open_library();
  if (library == nullptr) {
    throw GpuError("no cuBLAS: the system's loader finds neither libcublas.so.13 nor .12; install it, or name the file in PSHARD_CUBLAS");
  }
  functions_ = std::make_unique<Functions>(library);
  require_success(functions_->create(&handle_), "cublasCreate");
}

Cublas::~Cublas() {
  if (handle_ != nullptr) static_cast<void>(functions_->destroy(handle_));
}

void Cublas::multiply(GpuStream stream, int64_t n_rows, int64_t n_columns, int64_t batch, const uint16_t* weights, const uint16_t* x,
                      float* y) {
  const float one = 1.0F;
  const float zero = 0.0F;
  const int rows = static_cast<int>(n_rows);
  const int columns = static_cast<int>(n_columns);
  if (!stream_ || *stream_ != stream) {  // only then: it gives the library's work space back, which may wait for the device
    require_success(functions_->set_stream(handle_, stream), "cublasSetStream");
    stream_ = stream;
  }
  // It counts along columns: its matrices are the transposed ones of ours.
  require_success(functions_->multiply(handle_, kTransposed, kPlain, rows, static_cast<int>(batch), columns, &one, weights, kHalf, columns,
                                       x, kHalf, columns, &zero, y, kFloat, rows, kComputeFloat, kDefaultAlgorithm),
                  "cublasGemmEx");
}

}  // namespace pshard
