#include <pybind11/numpy.h>

#include "bindings/bindings.hpp"
#include "probe/gpu_probe.hpp"

namespace {

using pshard::AttentionShape;
using pshard::Contention;
using pshard::CopyShape;
using pshard::CpuProbe;
using pshard::Direction;
using pshard::Gpu;
using pshard::GpuBytes;
using pshard::GpuExperts;
using pshard::GpuLane;
using pshard::GpuProbe;
using pshard::GpuProduct;
using pshard::GpuStart;
using pshard::Handoff;
using pshard::HostMemory;
using pshard::LockedMemory;
using pshard::Policy;
using pshard::Sides;

using Release = py::call_guard<py::gil_scoped_release>;
using Values = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;
using Ids = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

Direction direction_of(const std::string& name) {
  if (name == "up") return Direction::up;
  if (name == "down") return Direction::down;
  throw std::invalid_argument("direction is '" + name + "', must be 'up' or 'down'");
}

HostMemory memory_of(const std::string& name) {
  if (name == "locked") return HostMemory::locked;
  if (name == "pageable") return HostMemory::pageable;
  throw std::invalid_argument("memory is '" + name + "', must be 'locked' or 'pageable'");
}

void bind_results(py::module_& m) {
  py::class_<GpuStart>(m, "GpuStart", R"(Seconds of starting work on a GPU.

Attributes
----------
launch : ProbeResult
    One of many kernels in a row that do nothing.
hop : ProbeResult
    The same on two streams in turns, each kernel waiting for an event behind the one before.
synchronise : ProbeResult
    One call that waits for an idle stream.)")
      .def_readonly("launch", &GpuStart::launch)
      .def_readonly("hop", &GpuStart::hop)
      .def_readonly("synchronise", &GpuStart::synchronise);

  py::class_<Handoff>(m, "Handoff", R"(Seconds of going from one processor to the other.

Attributes
----------
to_gpu : ProbeResult
    From the call that queues a kernel until that runs and the host sees it.
to_cpu : ProbeResult
    From then until the host knows of its end.)")
      .def_readonly("to_gpu", &Handoff::to_gpu)
      .def_readonly("to_cpu", &Handoff::to_cpu);

  py::class_<Sides>(m, "Sides", R"(Two kinds of work, each alone and while the other goes on.

Attributes
----------
first_alone, second_alone, first_beside, second_beside : ProbeResult)")
      .def_readonly("first_alone", &Sides::first_alone)
      .def_readonly("second_alone", &Sides::second_alone)
      .def_readonly("first_beside", &Sides::first_beside)
      .def_readonly("second_beside", &Sides::second_beside);

  py::class_<LockedMemory>(m, "LockedMemory", R"(How much host memory was page-locked.

Attributes
----------
n_bytes : int
was_refused : bool
    The driver gave no more; otherwise no more was asked for.)")
      .def_readonly("n_bytes", &LockedMemory::n_bytes)
      .def_readonly("was_refused", &LockedMemory::was_refused);
}

// ---- one operation on the device, for those who check its result

template <typename Array>
GpuBytes uploaded(Gpu& gpu, const Array& array) {
  GpuBytes bytes(gpu, std::max<int64_t>(array.nbytes(), 16));
  gpu.copy(GpuLane::compute, bytes.data(), array.data(), array.nbytes());
  gpu.synchronise(GpuLane::compute);
  return bytes;
}

void download(Gpu& gpu, const GpuBytes& bytes, Values& array) {
  gpu.copy(GpuLane::compute, array.mutable_data(), bytes.data(), array.nbytes());
  gpu.synchronise(GpuLane::compute);
}

void require_bytes(const char* name, int64_t got, int64_t wanted) {
  if (got != wanted) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(got) + " bytes, this shape has " + std::to_string(wanted));
  }
}

Values multiply(const GpuProbe& probe, const std::string& type, const Bytes& weights, const Values& activations) {
  if (weights.ndim() != 2 || activations.ndim() != 2) throw std::invalid_argument("weights and activations must have two dimensions");
  const GpuProduct shape{pshard::weight_type(type), weights.shape(0), activations.shape(1), activations.shape(0)};
  check(shape);
  require_bytes("weights", weights.nbytes(), weight_bytes(shape));
  Gpu& gpu = probe.gpu();
  const GpuBytes w = uploaded(gpu, weights);
  const GpuBytes x = uploaded(gpu, activations);
  const GpuBytes scratch(gpu, std::max<int64_t>(scratch_bytes(shape), 256));
  Values out({shape.batch, shape.n_rows});
  const GpuBytes y(gpu, out.nbytes());
  gpu.multiply(GpuLane::compute, shape, w.data(), x.as<float>(), y.as<float>(), scratch.data());
  download(gpu, y, out);
  return out;
}

Values multiply_experts(const GpuProbe& probe, const std::string& type, const Bytes& weights, const Ids& ids, const Values& activations) {
  if (weights.ndim() != 3 || ids.ndim() != 2 || activations.ndim() < 2 || activations.ndim() > 3) {
    throw std::invalid_argument("weights must have three dimensions, ids two, activations two or three");
  }
  const bool has_own_rows = activations.ndim() == 3;
  const GpuExperts shape{pshard::weight_type(type),
                         weights.shape(1),
                         activations.shape(activations.ndim() - 1),
                         weights.shape(0),
                         ids.shape(1),
                         ids.shape(0),
                         has_own_rows};
  check(shape);
  require_bytes("weights", weights.nbytes(), weight_bytes(shape));
  require_bytes("activations", activations.nbytes(), shape.batch * (has_own_rows ? shape.n_used : 1) * shape.n_columns * 4);
  for (int64_t i = 0; i < ids.size(); ++i) {
    if (ids.data()[i] < 0 || ids.data()[i] >= shape.n_experts) throw std::invalid_argument("an id is no expert");
  }
  Gpu& gpu = probe.gpu();
  const GpuBytes w = uploaded(gpu, weights);
  const GpuBytes i = uploaded(gpu, ids);
  const GpuBytes x = uploaded(gpu, activations);
  const GpuBytes scratch(gpu, std::max<int64_t>(scratch_bytes(shape), 256));
  Values out({shape.batch, shape.n_used, shape.n_rows});
  const GpuBytes y(gpu, out.nbytes());
  gpu.multiply_experts(GpuLane::compute, shape, w.data(), i.as<int32_t>(), x.as<float>(), y.as<float>(), scratch.data());
  download(gpu, y, out);
  return out;
}

Values attend(const GpuProbe& probe, const Values& queries, const Bytes& keys, const Bytes& values, int64_t n_kv_heads) {
  if (queries.ndim() != 3) throw std::invalid_argument("queries must have three dimensions");
  const int64_t head_size = queries.shape(2);
  const AttentionShape shape{queries.shape(1), n_kv_heads, head_size, keys.nbytes() / std::max<int64_t>(1, 2 * n_kv_heads * head_size),
                             queries.shape(0)};
  pshard::check_gpu(shape);
  require_bytes("keys", keys.nbytes(), shape.depth * n_kv_heads * head_size * 2);
  require_bytes("values", values.nbytes(), keys.nbytes());
  Gpu& gpu = probe.gpu();
  const GpuBytes q = uploaded(gpu, queries);
  const GpuBytes k = uploaded(gpu, keys);
  const GpuBytes v = uploaded(gpu, values);
  const GpuBytes scratch(gpu, std::max<int64_t>(pshard::gpu_scratch_bytes(shape), 256));
  Values out({shape.batch, shape.n_heads, head_size});
  const GpuBytes y(gpu, out.nbytes());
  gpu.attend(GpuLane::compute, shape, q.as<float>(), k.data(), v.data(), y.as<float>(), scratch.data());
  download(gpu, y, out);
  return out;
}

}  // namespace

void bind_probe_gpu(py::module_& m) {
  py::register_exception<pshard::GpuError>(m, "GpuError", PyExc_RuntimeError).doc() =
      "A call of the CUDA runtime failed, or there is no such GPU; the message has the call and what the runtime says.";
  bind_results(m);

  py::class_<GpuProbe>(m, "GpuProbe", R"(Measures what a GPU and its link reach. Every result is verified.

Parameters
----------
index : int
    Which GPU, in the CUDA runtime's order.
max_device_bytes, max_host_bytes : int
    Bounds of the memory that a probe takes.

Raises
------
GpuError
    No such GPU, or pshard was built without CUDA.
ValueError
    No memory.)")
      .def(py::init([](int index, int64_t max_device_bytes, int64_t max_host_bytes) {
             return std::make_unique<GpuProbe>(pshard::open_gpu(index), max_device_bytes, max_host_bytes);
           }),
           py::arg("index"), py::kw_only(), py::arg("max_device_bytes"), py::arg("max_host_bytes"))
      .def_property_readonly("name", [](const GpuProbe& probe) { return probe.gpu().name(); })
      .def_property_readonly("free_bytes", [](const GpuProbe& probe) { return probe.gpu().free_bytes(); })
      .def_property_readonly("copy_engines", [](const GpuProbe& probe) { return probe.gpu().copy_engines(); })
      .def("read", &GpuProbe::read, Release(), py::kw_only(), py::arg("policy"), R"(Read bandwidth of the GPU's memory.

Parameters
----------
policy : MeasurePolicy

Returns
-------
ProbeResult
    `n_bytes` is the array.

Raises
------
ProbeError
    A wrong sum, or a sample that is too short for the GPU's clock.
GpuError
    A call failed.)")
      .def("copy_on_device", &GpuProbe::copy_on_device, Release(), py::kw_only(), py::arg("policy"),
           R"(Copies from the GPU's memory to itself.

Parameters
----------
policy : MeasurePolicy

Returns
-------
ProbeResult
    `n_bytes` counts what is copied: memory reads and writes each of them.

Raises
------
ProbeError, GpuError
    As `read`.)")
      .def("start", &GpuProbe::start, Release(), py::kw_only(), py::arg("policy"), R"(What starting work costs.

Parameters
----------
policy : MeasurePolicy

Returns
-------
GpuStart

Raises
------
ProbeError, GpuError
    As `read`.)")
      .def("handoff", &GpuProbe::handoff, Release(), py::kw_only(), py::arg("policy"), R"(Going from one processor to the other.

Parameters
----------
policy : MeasurePolicy

Returns
-------
Handoff

Raises
------
ProbeError, GpuError
    As `read`.)")
      .def(
          "product",
          [](GpuProbe& probe, const std::string& type, int64_t n_rows, int64_t n_columns, int64_t batch, const Policy& policy) {
            return probe.product({pshard::weight_type(type), n_rows, n_columns, batch}, policy);
          },
          Release(), py::arg("type"), py::kw_only(), py::arg("n_rows"), py::arg("n_columns"), py::arg("batch"), py::arg("policy"),
          R"(Product of an n_rows × n_columns matrix with `batch` rows of activations, rounding of the activations included.

Parameters
----------
type : str
    One of `weight_types()` that GPUs multiply.
n_rows, n_columns : int
batch : int
    From 1 to 8192.
policy : MeasurePolicy

Returns
-------
ProbeResult
    `n_bytes` is the matrix.

Raises
------
ProbeError
    A wrong product, a sample that is too short for the GPU's clock, or too little memory.
GpuError
    A call failed.
ValueError
    A shape that no kernel takes.)")
      .def(
          "experts",
          [](GpuProbe& probe, const std::string& type, int64_t n_rows, int64_t n_columns, int64_t n_experts, int64_t n_used,
             int64_t n_tokens, const Policy& policy) {
            return probe.experts({pshard::weight_type(type), n_rows, n_columns, n_experts, n_used, n_tokens, false}, policy);
          },
          Release(), py::arg("type"), py::kw_only(), py::arg("n_rows"), py::arg("n_columns"), py::arg("n_experts"), py::arg("n_used"),
          py::arg("n_tokens"), py::arg("policy"), R"(Products of tokens with their experts, which are drawn at random.

Parameters
----------
type, n_rows, n_columns, policy
    As those of `product`, for each expert.
n_experts, n_used : int
    Experts that there are, and different ones for each token.
n_tokens : int

Returns
-------
ProbeResult
    `n_bytes` is those matrices that some token uses, `n_flop` counts all tokens.

Raises
------
ProbeError, GpuError, ValueError
    As `product`.)")
      .def(
          "attention",
          [](GpuProbe& probe, int64_t n_heads, int64_t n_kv_heads, int64_t head_size, int64_t depth, int64_t batch, const Policy& policy) {
            return probe.attention({n_heads, n_kv_heads, head_size, depth, batch}, policy);
          },
          Release(), py::kw_only(), py::arg("n_heads"), py::arg("n_kv_heads"), py::arg("head_size"), py::arg("depth"), py::arg("batch"),
          py::arg("policy"), R"(Fused attention of `batch` query tokens over an F16 cache of `depth` cells, each of which every token reads.

Parameters
----------
n_heads, n_kv_heads, head_size : int
depth, batch : int
    Cells, and at most as many query tokens.
policy : MeasurePolicy

Returns
-------
ProbeResult
    `n_bytes` is the cache; FLOP are 4 × head_size × n_heads × batch × depth.

Raises
------
ProbeError, GpuError, ValueError
    As `product`.)")
      .def(
          "library_product",
          [](GpuProbe& probe, int64_t n_rows, int64_t n_columns, int64_t batch, const Policy& policy) {
            return probe.library_product({pshard::WeightType::f16, n_rows, n_columns, batch}, policy);
          },
          Release(), py::kw_only(), py::arg("n_rows"), py::arg("n_columns"), py::arg("batch"), py::arg("policy"),
          R"(As `product` of F16, by cuBLAS; rounding of the activations not included.

Parameters
----------
n_rows, n_columns, batch, policy
    As those of `product`.

Returns
-------
ProbeResult

Raises
------
GpuError
    No cuBLAS is installed, or a call failed.
ProbeError, ValueError
    As `product`.)")
      .def(
          "copy",
          [](GpuProbe& probe, const std::string& direction, const std::string& memory, int64_t chunk_bytes, bool is_scattered,
             const Policy& policy) {
            return probe.copy(CopyShape{direction_of(direction), memory_of(memory), chunk_bytes, is_scattered}, policy);
          },
          Release(), py::arg("direction"), py::arg("memory"), py::kw_only(), py::arg("chunk_bytes"), py::arg("is_scattered"),
          py::arg("policy"), R"(Copies between host and GPU, one behind the other.

Parameters
----------
direction : {"up", "down"}
    To the GPU, or to the host.
memory : {"locked", "pageable"}
    Of the host. Pageable memory is copied by calls that wait, and timed by the clock of the host.
chunk_bytes : int
    Of one copy, a multiple of 16.
is_scattered : bool
    Chunks from all over the memory, as slices of experts lie; otherwise one after the other.
policy : MeasurePolicy

Returns
-------
ProbeResult
    Of one copy, its set-up included.

Raises
------
ProbeError
    Bytes that did not arrive, memory that the driver does not page-lock, or too little memory.
GpuError
    A call failed.
ValueError
    An unknown name, or a chunk that is no multiple of 16.)")
      .def(
          "plain_copy_seconds",
          [](GpuProbe& probe, const std::string& direction, int64_t chunk_bytes) {
            return probe.plain_copy_seconds(direction_of(direction), chunk_bytes);
          },
          Release(), py::arg("direction"), py::kw_only(), py::arg("chunk_bytes"),
          R"(Seconds of one of many copies of page-locked memory in a row, by the clock of the host: what `copy` is held against.

Parameters
----------
direction : {"up", "down"}
chunk_bytes : int

Returns
-------
float
    Of the fastest of a few rounds. Nothing is verified.

Raises
------
ProbeError, GpuError, ValueError
    As `copy`.)")
      .def("copies_both_ways", &GpuProbe::copies_both_ways, Release(), py::kw_only(), py::arg("chunk_bytes"), py::arg("policy"),
           R"(Copies up and copies down, each alone and beside the other.

Parameters
----------
chunk_bytes : int
policy : MeasurePolicy

Returns
-------
Sides
    First up, second down.

Raises
------
ProbeError, GpuError, ValueError
    As `copy`; and where one side ended before the other was measured.)")
      .def(
          "copies_beside_product",
          [](GpuProbe& probe, const std::string& type, int64_t n_rows, int64_t n_columns, int64_t batch, int64_t chunk_bytes,
             const Policy& policy) {
            return probe.copies_beside_product({pshard::weight_type(type), n_rows, n_columns, batch}, chunk_bytes, policy);
          },
          Release(), py::arg("type"), py::kw_only(), py::arg("n_rows"), py::arg("n_columns"), py::arg("batch"), py::arg("chunk_bytes"),
          py::arg("policy"), R"(Copies up and products of the GPU, each alone and beside the other.

Parameters
----------
type, n_rows, n_columns, batch
    As those of `product`.
chunk_bytes : int
policy : MeasurePolicy

Returns
-------
Sides
    First the copies, second the product.

Raises
------
ProbeError, GpuError, ValueError
    As `product` and `copies_both_ways`.)")
      .def(
          "copies_beside_cpu",
          [](GpuProbe& probe, CpuProbe& cpu, const std::string& type, int64_t n_rows, int64_t n_columns, int64_t batch, int64_t chunk_bytes,
             const Policy& policy) {
            const std::unique_ptr<pshard::CopyWork> copies = probe.copies_up(chunk_bytes);
            return cpu.contention({pshard::weight_type(type), pshard::Layout::plain, n_rows, n_columns, batch, 1}, *copies, policy);
          },
          Release(), py::arg("cpu"), py::arg("type"), py::kw_only(), py::arg("n_rows"), py::arg("n_columns"), py::arg("batch"),
          py::arg("chunk_bytes"), py::arg("policy"), R"(Copies up and products of the CPU, each alone and beside the other.

Parameters
----------
cpu : CpuProbe
    Its first thread starts the copies, the others multiply.
type, n_rows, n_columns, batch
    As those of `CpuProbe.product`.
chunk_bytes : int
policy : MeasurePolicy

Returns
-------
Contention

Raises
------
ProbeError, GpuError, ValueError
    As `copy` and `CpuProbe.contention`.)")
      .def("lockable", &GpuProbe::lockable, Release(), py::kw_only(), py::arg("step_bytes"), py::arg("limit_bytes"),
           py::arg("budget_seconds"), R"(How much host memory the driver will page-lock. All of it is given back.

Parameters
----------
step_bytes, limit_bytes : int
    What is locked at a time, and at most.
budget_seconds : float
    No further step begins after it.

Returns
-------
LockedMemory

Raises
------
ValueError
    A step that is not positive.)")
      .def("multiply", &multiply, py::arg("type"), py::arg("weights"), py::arg("activations"),
           R"(One product as `product` times it, for those who check its result.

Parameters
----------
type : str
weights : numpy.ndarray of uint8, shape (n_rows, bytes of a row)
    As in a GGUF file.
activations : numpy.ndarray of float32, shape (batch, n_columns)

Returns
-------
numpy.ndarray of float32, shape (batch, n_rows)

Raises
------
ValueError
    Shapes that do not go together, or that no kernel takes.
GpuError
    A call failed.)")
      .def("multiply_experts", &multiply_experts, py::arg("type"), py::arg("weights"), py::arg("ids"), py::arg("activations"),
           R"(Routed experts as `experts` times them, for those who check the result.

Parameters
----------
type : str
weights : numpy.ndarray of uint8, shape (n_experts, n_rows, bytes of a row)
ids : numpy.ndarray of int32, shape (n_tokens, n_used)
activations : numpy.ndarray of float32, shape (n_tokens, n_columns) or (n_tokens, n_used, n_columns)

Returns
-------
numpy.ndarray of float32, shape (n_tokens, n_used, n_rows)

Raises
------
ValueError, GpuError
    As `multiply`.)")
      .def("attend", &attend, py::arg("queries"), py::arg("keys"), py::arg("values"), py::kw_only(), py::arg("n_kv_heads"),
           R"(Attention as `attention` times it, for those who check the result.

Parameters
----------
queries : numpy.ndarray of float32, shape (batch, n_heads, head_size)
keys, values : numpy.ndarray of uint8
    The bytes of F16 numbers, (depth, n_kv_heads, head_size) each.
n_kv_heads : int

Returns
-------
numpy.ndarray of float32, shape (batch, n_heads, head_size)

Raises
------
ValueError, GpuError
    As `multiply`.)");
}
