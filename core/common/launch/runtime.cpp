// Launches through the CUDA runtime, of the kernels that nvcc compiled into this build.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "common/check.h"
#include "cuda_build.h"
#include "external_launcher.h"
#include "kernel_table.h"

namespace alignmask {

namespace {

/// The driver's functions for contexts. Looked up at run time: the module must load where no driver
/// is.
struct Driver {
  decltype(&cuDeviceGet) device_get;
  decltype(&cuDevicePrimaryCtxRetain) primary_context_retain;
  decltype(&cuCtxPushCurrent) push;
  decltype(&cuCtxPopCurrent) pop;

  Driver() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) throw std::runtime_error("no CUDA driver: libcuda.so.1 cannot be loaded");
    find(library, "cuDeviceGet", device_get);
    find(library, "cuDevicePrimaryCtxRetain", primary_context_retain);
    find(library, "cuCtxPushCurrent_v2", push);
    find(library, "cuCtxPopCurrent_v2", pop);
  }

 private:
  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) throw std::runtime_error(std::string("the CUDA driver has no ") + name);
  }
};

/// Makes a device current in this thread while it lives. Through contexts, not cudaSetDevice:
/// putting the former device back by number would create a context, hundreds of megabytes, on a GPU
/// that is not used.
class CurrentDevice {
 public:
  explicit CurrentDevice(const LaunchTarget& target) try {
    const CUresult error = driver().push(primary_context(target.device.index));
    if (error != CUDA_SUCCESS)
      throw std::runtime_error("cannot be used: driver error " + std::to_string(error));
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(describe(target) + ": " + error.what());
  }
  ~CurrentDevice() {
    CUcontext context;
    driver().pop(&context);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  static const Driver& driver() {
    static const Driver functions;
    return functions;
  }

  /// Retained once and for the life of the process, as the framework that made the tensors does it.
  static CUcontext primary_context(int index) {
    static std::mutex mutex;
    static std::unordered_map<int, CUcontext> contexts;
    const std::lock_guard<std::mutex> lock(mutex);
    CUcontext& context = contexts[index];
    CUdevice device;
    if (!context && (driver().device_get(&device, index) != CUDA_SUCCESS ||
                     driver().primary_context_retain(&context, device) != CUDA_SUCCESS))
      throw std::runtime_error("there is no such device");
    return context;
  }
};

std::string describe(const LaunchTarget& target, const Launch& launch) {
  return describe(target) + ": launch of " + launch.kernel + " with " +
         std::to_string(launch.blocks) + " blocks of " + std::to_string(launch.threads) +
         " threads failed: ";
}

}  // namespace

CudaBuild cuda_build() {
  CudaBuild build;
  build.architectures = ALIGNMASK_CUDA_ARCHITECTURES;
  build.compiler = ALIGNMASK_CUDA_COMPILER;
  build.runtime = CUDART_VERSION;
  if (cudaDriverGetVersion(&build.driver) != cudaSuccess) build.driver = 0;
  return build;
}

bool uses_cuda_kernels(Device device) { return device.type == DeviceType::kCUDA; }

void run(const LaunchTarget& target, const std::vector<Launch>& launches) {
  if (launches.empty() || run_externally(target, launches)) return;
  const CurrentDevice current(target);
  for (const Launch& launch : launches) {
    const KernelFunction kernel = find_kernel(launch.kernel);
    if (!kernel) throw std::logic_error(describe(target, launch) + "there is no such kernel");
    void* arguments[] = {const_cast<unsigned char*>(launch.params.data())};
    const cudaError_t error =
        cudaLaunchKernel(kernel, dim3(launch.blocks), dim3(launch.threads), arguments, 0,
                         static_cast<cudaStream_t>(target.stream));
    if (error != cudaSuccess) {
      cudaGetLastError();  // it is reported here, and must not turn up in the next check of other
                           // code
      throw std::runtime_error(describe(target, launch) + cudaGetErrorString(error));
    }
  }
}

}  // namespace alignmask
