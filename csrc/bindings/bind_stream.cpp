#include <pybind11/native_enum.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "bindings/bindings.hpp"
#include "cost/pass_cost.hpp"
#include "stream/cuda_backend.hpp"
#include "stream/executor.hpp"
#include "stream/host_backend.hpp"
#include "stream/metered_backend.hpp"
#include "stream/queue_costs.hpp"

using namespace py::literals;

namespace {

using pshard::ArenaLimits;
using pshard::Backend;
using pshard::CopyRecord;
using pshard::Device;
using pshard::Executor;
using pshard::ExecutorOptions;
using pshard::HostBackend;
using pshard::HostBackendOptions;
using pshard::HostDevice;
using pshard::Order;
using pshard::PassCost;
using pshard::PassRecord;
using pshard::PassTime;
using pshard::Schedule;
using pshard::Split;
using pshard::SplitRecord;
using pshard::SplitTime;
using pshard::SwitchRecord;
using pshard::TensorInFile;
using pshard::WeightSource;

// A backend, a source of weights, and the executor that uses them.
class Runner {
 public:
  Runner(std::unique_ptr<Backend> backend, std::unique_ptr<WeightSource> source, std::vector<Schedule> schedules,
         const ExecutorOptions& options)
      : backend_(std::move(backend)),
        metered_(*backend_),
        source_(std::move(source)),
        executor_(metered_, *source_, std::move(schedules), options, look_for_signals) {}

  SwitchRecord load(size_t schedule) { return executor_.load(schedule, look_for_signals); }
  PassRecord run(size_t schedule) { return executor_.run(schedule, look_for_signals); }
  [[nodiscard]] const Executor& executor() const { return executor_; }
  [[nodiscard]] std::pair<double, double> queueing_seconds() const { return {metered_.queueing_seconds(), metered_.work_seconds()}; }
  // Ctrl-C ends a pass; the queues run dry, and the exception goes on.
  static void look_for_signals() {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  // What the tensor's copies are made of.
  [[nodiscard]] py::bytes weights(size_t schedule, const std::string& name) const {
    const auto& tensors = executor_.schedules().at(schedule).tensors;
    const auto tensor = std::find_if(tensors.begin(), tensors.end(), [&](const auto& other) { return other.name == name; });
    if (tensor == tensors.end()) throw std::invalid_argument("tensor '" + name + "' is not in schedule " + std::to_string(schedule));
    return {reinterpret_cast<const char*>(source_->bytes(*tensor)), static_cast<size_t>(tensor->n_bytes)};
  }

 private:
  std::unique_ptr<Backend> backend_;
  pshard::MeteredBackend metered_;
  std::unique_ptr<WeightSource> source_;
  Executor executor_;
};

std::unique_ptr<WeightSource> source_of(const std::vector<Schedule>& schedules, const std::vector<std::string>& files,
                                        const std::vector<TensorInFile>& tensors, uint64_t seed, int n_threads) {
  if (files.empty()) return std::make_unique<pshard::GeneratedWeights>(schedules, seed, n_threads, Runner::look_for_signals);
  return std::make_unique<pshard::MappedWeights>(files, tensors);
}

// Threads of this machine on `devices`, or the GPUs of the CUDA runtime, with arenas of so many bytes.
std::unique_ptr<Backend> backend_of(const std::vector<int>& host_cpus, std::optional<std::vector<HostDevice>> devices,
                                    const std::vector<int64_t>& arena_bytes, int64_t page_lock_bytes, pshard::CpuPath path) {
  if (!devices) return pshard::make_cuda_backend({host_cpus, arena_bytes, page_lock_bytes, path});
  for (size_t i = 0; i < std::min(devices->size(), arena_bytes.size()); ++i) (*devices)[i].arena_bytes = arena_bytes[i];
  return std::make_unique<HostBackend>(HostBackendOptions{host_cpus, *devices, page_lock_bytes, path});
}

// What the schedules take where no budget limits them: at least what was planned.
ArenaLimits grown(ArenaLimits limits, const std::vector<Schedule>& schedules, const Backend& backend) {
  const ArenaLimits wanted = pshard::arenas_wanted(schedules, backend);
  for (size_t i = 0; i < std::min(limits.size(), wanted.size()); ++i) {
    for (size_t gpu = 0; gpu < std::min(limits[i].size(), wanted[i].size()); ++gpu) {
      limits[i][gpu] = std::max(limits[i][gpu], wanted[i][gpu]);
    }
  }
  return limits;
}

// One arena serves all schedules.
std::vector<int64_t> largest(const ArenaLimits& limits) {
  std::vector<int64_t> arenas;
  for (const std::vector<int64_t>& by_gpu : limits) {
    arenas.resize(std::max(arenas.size(), by_gpu.size()), 0);
    for (size_t gpu = 0; gpu < by_gpu.size(); ++gpu) arenas[gpu] = std::max(arenas[gpu], by_gpu[gpu]);
  }
  return arenas;
}

void bind_schedule(py::module_& m) {
  py::class_<pshard::LeftOut>(m, "LeftOut", "Operations that are not executed, and why; `weight_bytes` are those of products.")
      .def_readonly("what", &pshard::LeftOut::what)
      .def_readonly("count", &pshard::LeftOut::count)
      .def_readonly("weight_bytes", &pshard::LeftOut::weight_bytes);
  py::class_<Split>(m, "Split", R"(A run of operations on one device, and in one lane of it.

Attributes
----------
lane : Where
device : int
    0 is the host, GPU i is i + 1.
first_layer, n_layers : int
    Of the layers that it executes something of; -1 and 0 where it executes none.
is_sliced : bool
    Of its streamed experts only those that are used are copied.)")
      .def_readonly("lane", &Split::lane)
      .def_property_readonly("device", [](const Split& split) { return static_cast<int>(split.device); })
      .def_readonly("first_layer", &Split::first_layer)
      .def_readonly("n_layers", &Split::n_layers)
      .def_property_readonly("streams", &Split::streams)
      .def_property_readonly("offloads", [](const Split& split) { return !split.offloaded.empty() || !split.offloaded_experts.empty(); })
      .def_readonly("is_sliced", &Split::is_sliced);
  py::class_<Schedule>(m, "Schedule", R"(The splits of one pass, in order, with all that is executed and copied for them.

Attributes
----------
n_tokens : int
splits : list of Split
left_out : list of LeftOut
    What is not executed.
flop : float
    Of what is executed.
weight_bytes : int
    Of the products that are executed, experts whole.)")
      .def_readonly("n_tokens", &Schedule::n_tokens)
      .def_readonly("splits", &Schedule::splits)
      .def_readonly("left_out", &Schedule::left_out)
      .def_readonly("flop", &Schedule::flop)
      .def_readonly("weight_bytes", &Schedule::weight_bytes)
      .def(
          "slice",
          [](Schedule& schedule, const std::vector<bool>& is_sliced) {
            if (is_sliced.size() != schedule.splits.size()) {
              throw std::invalid_argument(std::to_string(is_sliced.size()) + " entries for " + std::to_string(schedule.splits.size()) +
                                          " splits");
            }
            for (size_t i = 0; i < is_sliced.size(); ++i) schedule.splits[i].is_sliced = is_sliced[i];
          },
          "is_sliced"_a, "Say for each split whether its streamed experts come in slices, as the price says.");
  m.def(
      "make_schedule",
      [](const pshard::Model& model, const pshard::Placement& placement, const pshard::Pass& pass,
         const std::vector<int64_t>& cache_bytes) {
        check(pass);
        check(placement, model.layers().size());
        return pshard::make_schedule(model, placement, pass, cache_bytes);
      },
      "model"_a, "placement"_a, "pass_"_a, "cache_bytes"_a, R"(Make the schedule of a pass under a placement.

Parameters
----------
model : Model
placement : Placement
pass_ : Pass
    Of one sequence.
cache_bytes : list of int
    What is reserved for each layer's cache or state.

Returns
-------
Schedule

Raises
------
ValueError
    Several sequences, or as many sizes as there are not layers.)");
  py::class_<SplitTime>(m, "SplitTime", "A split as it was priced; seconds from the start of the pass.")
      .def_readonly("backend", &SplitTime::backend)
      .def_readonly("begin_seconds", &SplitTime::begin_seconds)
      .def_readonly("compute_begin_seconds", &SplitTime::compute_begin_seconds)
      .def_readonly("compute_seconds", &SplitTime::compute_seconds)
      .def_readonly("end_seconds", &SplitTime::end_seconds)
      .def_readonly("copy_begin_seconds", &SplitTime::copy_begin_seconds)
      .def_readonly("copy_seconds", &SplitTime::copy_seconds)
      .def_readonly("exposed_seconds", &SplitTime::exposed_seconds)
      .def_readonly("write_back_seconds", &SplitTime::write_back_seconds)
      .def_readonly("is_sliced", &SplitTime::is_sliced);
  m.def(
      "price_executed",
      [](const pshard::Model& model, std::vector<pshard::Machine> by_gpu, const pshard::Pass& pass, const pshard::Placement& placement) {
        // The executor attends to every cell.
        for (pshard::Machine& machine : by_gpu) machine.cpu.skips_masked = machine.gpu.skips_masked = false;
        check(pass);
        check(placement, model.layers().size());
        std::vector<SplitTime> splits;
        PassTime time = PassCost(model, pshard::Machines(by_gpu), pass, pshard::Executed(model, pass)).price(placement, &splits);
        return std::pair(time, std::move(splits));
      },
      "model"_a, "machines"_a, "pass_"_a, "placement"_a, R"(Price a pass of which only the operations that the executor runs count.

Parameters
----------
model : Model
machines : list of Machine
    One where all GPUs are alike, else one for each; the first is the host's, too.
pass_ : Pass
placement : Placement

Returns
-------
tuple of PassTime and list of SplitTime
    One for each split of `make_schedule`.

Raises
------
ValueError
    Fewer machines than GPUs, or several of which one has no GPU; no rate of a weight's type.)");
}

void bind_layout(py::module_& m) {
  py::class_<pshard::Lying>(m, "Lying", R"(Bytes of an arena that are in use for a while.

Attributes
----------
offset, n_bytes : int
first_step, last_step : int
    Of the pass, both included; each split has one step to receive values and one for each operation, the logits have the last.)")
      .def_readonly("offset", &pshard::Lying::offset)
      .def_property_readonly("n_bytes", [](const pshard::Lying& lying) { return lying.tenant.n_bytes; })
      .def_property_readonly("first_step", [](const pshard::Lying& lying) { return lying.tenant.first; })
      .def_property_readonly("last_step", [](const pshard::Lying& lying) { return lying.tenant.last; });
  py::class_<pshard::DeviceLayout>(m, "DeviceLayout", R"(What lies where in a GPU's arena.

Attributes
----------
resident_bytes : int
    From the start: weights and caches that stay.
lying : list of Lying
    Behind them: activations, results, and what is copied.
n_bytes : int
    Of all of it.)")
      .def_readonly("resident_bytes", &pshard::DeviceLayout::x)
      .def_readonly("lying", &pshard::DeviceLayout::lying)
      .def_readonly("n_bytes", &pshard::DeviceLayout::n_bytes);
  m.def(
      "lay_out",
      [](const std::vector<Schedule>& schedules, const ArenaLimits& vram_bytes) {
        if (vram_bytes.size() != schedules.size()) {
          throw std::invalid_argument(std::to_string(vram_bytes.size()) + " limits for " + std::to_string(schedules.size()) + " schedules");
        }
        std::vector<std::vector<pshard::DeviceLayout>> layouts;
        for (pshard::ScheduleLayout& layout : pshard::lay_out(schedules, vram_bytes, pshard::Scratch())) {
          layouts.emplace_back(layout.devices.begin() + 1, layout.devices.end());
        }
        return layouts;
      },
      "schedules"_a, "vram_bytes"_a, R"(Lay out schedules as the executor does where kernels need no scratch, and allocate nothing.

Parameters
----------
schedules : list of Schedule
vram_bytes : list of list of int
    What each may use of each GPU; one that needs more takes what it needs.

Returns
-------
list of list of DeviceLayout
    By schedule and GPU.

Raises
------
ValueError
    As many limits as there are not schedules.)");
}

void bind_records(py::module_& m) {
  py::class_<SplitRecord>(m, "SplitRecord",
                          "When a split ran; seconds from the start of the pass. It begins when it has all it waited for.")
      .def_readonly("begin_seconds", &SplitRecord::begin_seconds)
      .def_readonly("compute_seconds", &SplitRecord::compute_seconds)
      .def_readonly("end_seconds", &SplitRecord::end_seconds);
  py::class_<CopyRecord>(m, "CopyRecord", R"(Copies of weights and cache for one split, on one queue.

Attributes
----------
split : int
device : int
    Whose queue it is, as of a split: a cache that the CPU reads comes down from the GPU that holds it.
stream : str
    "lane a", "lane b" or "down"; "compute" where the CPU copies for itself.
begin_seconds, end_seconds : float
n_bytes : int)")
      .def_readonly("split", &CopyRecord::split)
      .def_property_readonly("device", [](const CopyRecord& copy) { return static_cast<int>(copy.queue.device); })
      .def_property_readonly("stream",
                             [](const CopyRecord& copy) {
                               switch (copy.queue.stream) {
                                 case pshard::Stream::lane_a:
                                   return "lane a";
                                 case pshard::Stream::lane_b:
                                   return "lane b";
                                 case pshard::Stream::down:
                                   return "down";
                                 default:
                                   return "compute";
                               }
                             })
      .def_readonly("begin_seconds", &CopyRecord::begin_seconds)
      .def_readonly("end_seconds", &CopyRecord::end_seconds)
      .def_readonly("n_bytes", &CopyRecord::n_bytes);
  py::class_<PassRecord>(m, "PassRecord", R"(One pass as it ran.

Attributes
----------
seconds : float
splits : list of SplitRecord
copies : list of CopyRecord
up_bytes, down_bytes : int
    Weights and cache.
activation_bytes : int
    Both ways, graph inputs and logits included.
n_checked : int
    Shards and results that were compared; 0 outside of checking mode.)")
      .def_readonly("seconds", &PassRecord::seconds)
      .def_readonly("splits", &PassRecord::splits)
      .def_readonly("copies", &PassRecord::copies)
      .def_readonly("up_bytes", &PassRecord::up_bytes)
      .def_readonly("down_bytes", &PassRecord::down_bytes)
      .def_readonly("activation_bytes", &PassRecord::activation_bytes)
      .def_readonly("n_checked", &PassRecord::n_checked);
  py::class_<SwitchRecord>(m, "SwitchRecord", "What became resident when a schedule was loaded, and what cache lost its place.")
      .def_readonly("seconds", &SwitchRecord::seconds)
      .def_readonly("up_bytes", &SwitchRecord::up_bytes)
      .def_readonly("down_bytes", &SwitchRecord::down_bytes);
}

}  // namespace

void bind_stream(py::module_& m) {
  py::register_exception<pshard::StreamError>(m, "StreamError", PyExc_RuntimeError).doc() =
      "An execution that cannot go on: memory or a file that is not there, a result that is wrong.";
  py::native_enum<Order>(m, "Order", "enum.Enum")
      .value("overlapped", Order::overlapped)
      .value("serial", Order::serial)
      .value("unordered", Order::unordered)
      .finalize();
  bind_schedule(m);
  bind_layout(m);
  bind_records(m);
  py::class_<HostDevice>(m, "HostDevice", R"(A GPU that threads of this machine stand in for.

Parameters
----------
compute_cpus, copy_cpus : list of int
    CPUs that its threads stay on; others may share them.
arena_bytes : int
    Of host memory, as its own.)")
      .def(py::init([](std::vector<int> compute_cpus, std::vector<int> copy_cpus, int64_t arena_bytes) {
             return HostDevice{std::move(compute_cpus), std::move(copy_cpus), arena_bytes};
           }),
           py::kw_only(), "compute_cpus"_a, "copy_cpus"_a, "arena_bytes"_a)
      .def_readonly("compute_cpus", &HostDevice::compute_cpus)
      .def_readonly("copy_cpus", &HostDevice::copy_cpus)
      .def_readonly("arena_bytes", &HostDevice::arena_bytes);
  py::class_<TensorInFile>(m, "TensorInFile", "Where a tensor lies: index of the file, offset and size in bytes.")
      .def(py::init([](std::string name, int32_t file, int64_t offset, int64_t n_bytes) {
             return TensorInFile{std::move(name), file, offset, n_bytes};
           }),
           "name"_a, "file"_a, "offset"_a, "n_bytes"_a);
  py::class_<Runner>(m, "Executor", R"(Runs schedules on this machine.

Parameters
----------
schedules : list of Schedule
    What several keep resident has one place in all of them.
host_cpus : list of int
    That compute the splits of the CPU.
devices : list of HostDevice, optional
    Threads that stand in for GPUs; without them, the GPUs of the CUDA runtime run.
vram_bytes : list of list of int
    What each schedule may use of each GPU's memory.
is_limited : bool
    Whether `vram_bytes` are a budget that somebody gave; if not, arenas are as much larger as the schedules need.
page_lock_bytes : int
    At most so much host memory is page-locked; what is copied from other memory is staged.
files, tensors : lists of str and TensorInFile, optional
    Where the weights lie; without, valid random blocks are made.
routing_exponent : float
    Of the distribution that experts are drawn from: 0 is uniform, s is Zipf's with that exponent.
seed : int
    Of weights and routes.
order : Order
check : bool
    Compare what arrives by checksum, and every product with a reference.
path : str
    Instruction set of the CPU, one of `cpu_paths()`.

Raises
------
StreamError
    A schedule needs more of an arena than it may, memory is refused, a file is not what it should be.
ProbeError
    A CPU is not available to this process.
ValueError
    An order without waits that is to be checked, a distribution that cannot be drawn from.)")
      .def(py::init([](std::vector<Schedule> schedules, const std::vector<int>& host_cpus,
                       const std::optional<std::vector<HostDevice>>& devices, ArenaLimits vram_bytes, int64_t page_lock_bytes,
                       const std::vector<std::string>& files, const std::vector<TensorInFile>& tensors, double routing_exponent,
                       uint64_t seed, Order order, bool check, const std::string& path, bool is_limited) {
             if (order == Order::unordered && check) throw std::invalid_argument("what is not ordered cannot be checked");
             const pshard::CpuPath cpu = pshard::cpu_path(path);
             const py::gil_scoped_release release;
             if (!is_limited) {
               // Only the backend knows what scratch its kernels need.
               const std::vector<int64_t> small(largest(vram_bytes).size(), 1);
               vram_bytes = grown(std::move(vram_bytes), schedules, *backend_of(host_cpus, devices, small, 0, cpu));
             }
             std::unique_ptr<Backend> backend = backend_of(host_cpus, devices, largest(vram_bytes), page_lock_bytes, cpu);
             auto source = source_of(schedules, files, tensors, seed, static_cast<int>(host_cpus.size()));
             ExecutorOptions options{std::move(vram_bytes), {routing_exponent, seed}, order, check};
             return std::make_unique<Runner>(std::move(backend), std::move(source), std::move(schedules), options);
           }),
           "schedules"_a, py::kw_only(), "host_cpus"_a, "devices"_a = py::none(), "vram_bytes"_a, "page_lock_bytes"_a,
           "files"_a = std::vector<std::string>{}, "tensors"_a = std::vector<TensorInFile>{}, "routing_exponent"_a = 0.0, "seed"_a = 1,
           py::arg_v("order", Order::overlapped, "Order.overlapped"), "check"_a = false, "path"_a = "", "is_limited"_a = true)
      .def("load", &Runner::load, py::call_guard<py::gil_scoped_release>(), "schedule"_a, R"(Make what a schedule keeps resident so.

Raises
------
StreamError
    What went wrong; the executor can be used again.)")
      .def("run", &Runner::run, py::call_guard<py::gil_scoped_release>(), "schedule"_a, R"(Run one pass; loads first, if another is loaded.

Raises
------
StreamError
    What went wrong, or was found wrong; the executor can be used again.)")
      .def(
          "arena_bytes",
          [](const Runner& runner, size_t schedule, int gpu) { return runner.executor().arena_bytes(schedule, pshard::gpu_device(gpu)); },
          "schedule"_a, "gpu"_a = 0, "What a schedule takes of a GPU's arena.")
      .def("weights", &Runner::weights, "schedule"_a, "name"_a, R"(Bytes of a tensor, as passes copy and multiply them.

Raises
------
ValueError
    The schedule has no such tensor.)")
      .def_property_readonly("queueing_seconds", &Runner::queueing_seconds,
                             "Of the host, to queue the last pass; and of that, in calls that hand over copies and operations.")
      .def_property_readonly("locked_bytes", [](const Runner& runner) { return runner.executor().locked_bytes(); })
      .def_property_readonly("staged_bytes", [](const Runner& runner) { return runner.executor().staged_bytes(); });
  m.def(
      "queue_costs",
      [](const std::vector<int>& host_cpus, const HostDevice& device) {
        HostBackend backend(HostBackendOptions{host_cpus, {device}, 0, pshard::cpu_path("")});
        const pshard::QueueCosts costs = pshard::queue_costs(backend);
        return std::pair(costs.op_seconds, costs.handoff_seconds);
      },
      "host_cpus"_a, "device"_a, py::call_guard<py::gil_scoped_release>(),
      "Seconds to start an operation on a host device, and to go on with the work of another queue.");
}
