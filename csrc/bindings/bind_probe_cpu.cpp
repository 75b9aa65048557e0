#include <pybind11/numpy.h>

#include <limits>
#include <optional>

#include "bindings/bindings.hpp"
#include "probe/cpu_probe.hpp"
#include "probe/random.hpp"
#include "probe/storage.hpp"

namespace {

using pshard::Contention;
using pshard::CpuProbe;
using pshard::Measurement;
using pshard::OpCost;
using pshard::Peak;
using pshard::Policy;
using pshard::ProbeResult;
using pshard::ProductShape;

using Release = py::call_guard<py::gil_scoped_release>;

pshard::ScanKind scan_kind(const std::string& name) {
  if (name == "mamba") return pshard::ScanKind::mamba;
  if (name == "mamba2") return pshard::ScanKind::mamba2;
  if (name == "delta_net") return pshard::ScanKind::delta_net;
  throw std::invalid_argument("kind is '" + name + "', must be mamba, mamba2 or delta_net");
}

void bind_method(py::module_& m) {
  py::register_exception<pshard::ProbeError>(m, "ProbeError", PyExc_RuntimeError).doc() =
      "A measurement that cannot be trusted: a wrong result, a clock that is too coarse, a CPU, file or memory that is not there.";

  py::class_<Policy>(m, "MeasurePolicy", R"(When a measurement ends.

Parameters
----------
max_spread : float
    Relative spread at which a figure is settled.
noisy_spread : float
    Relative spread, or drift between the halves of the samples, over which a figure is noisy.
budget_seconds : float
    For warm-up and samples together. The least count is taken even where it needs longer.
min_count, max_count : int
    Samples.

Raises
------
ValueError
    A bound that no measurement can meet; the message names it.)")
      .def(py::init([](double max_spread, double noisy_spread, double budget_seconds, int32_t min_count, int32_t max_count) {
             const Policy policy{max_spread, noisy_spread, budget_seconds, min_count, max_count};
             pshard::check(policy);
             return policy;
           }),
           py::kw_only(), py::arg("max_spread") = Policy{}.max_spread, py::arg("noisy_spread") = Policy{}.noisy_spread,
           py::arg("budget_seconds") = Policy{}.budget_seconds, py::arg("min_count") = Policy{}.min_count,
           py::arg("max_count") = Policy{}.max_count)
      .def_readonly("max_spread", &Policy::max_spread)
      .def_readonly("noisy_spread", &Policy::noisy_spread)
      .def_readonly("budget_seconds", &Policy::budget_seconds)
      .def_readonly("min_count", &Policy::min_count)
      .def_readonly("max_count", &Policy::max_count);

  py::class_<Measurement>(m, "Measurement", R"(Seconds of one sample, over all that were taken after warm-up.

Attributes
----------
median_seconds, minimum_seconds : float
spread : float
    Half the distance between the 16th and the 84th percentile, relative to the median.
drift : float
    Distance between the medians of the first and the second half, relative to the median.
count : int
    Samples that the figures rest on.
is_settled : bool
    The spread came under the policy's bound; otherwise its budget or its greatest count ended the measurement.
is_noisy : bool
    Spread or drift are over the policy's bound of noise: something else ran, or clocks changed.)")
      .def_readonly("median_seconds", &Measurement::median_seconds)
      .def_readonly("minimum_seconds", &Measurement::minimum_seconds)
      .def_readonly("spread", &Measurement::spread)
      .def_readonly("drift", &Measurement::drift)
      .def_readonly("count", &Measurement::count)
      .def_readonly("is_settled", &Measurement::is_settled)
      .def_readonly("is_noisy", &Measurement::is_noisy);

  py::class_<ProbeResult>(m, "ProbeResult", R"(What one sample of a probe did, and how long it took.

Attributes
----------
time : Measurement
n_bytes, n_flop : float
    Of one sample: weights or cache that were read, or bytes copied; a multiplication and an addition are two FLOP.
bytes_per_second, flop_per_second : float
    By the median.
n_threads : int
is_cold : bool
    No sample found what it read in a cache.
note : str
    Why it was not cold, or how the operating system was asked; empty where there is nothing to say.)")
      .def_readonly("time", &ProbeResult::time)
      .def_readonly("n_bytes", &ProbeResult::n_bytes)
      .def_readonly("n_flop", &ProbeResult::n_flop)
      .def_readonly("n_threads", &ProbeResult::n_threads)
      .def_readonly("is_cold", &ProbeResult::is_cold)
      .def_readonly("note", &ProbeResult::note)
      .def_property_readonly("bytes_per_second", &ProbeResult::bytes_per_second)
      .def_property_readonly("flop_per_second", &ProbeResult::flop_per_second);

  py::class_<Contention>(m, "Contention", R"(Copies and products, each alone and under the other.

Attributes
----------
copy_alone, copy_under_product : ProbeResult
    `n_bytes` counts what was copied; memory reads and writes each of them.
product_alone, product_under_copy : ProbeResult)")
      .def_readonly("copy_alone", &Contention::copy_alone)
      .def_readonly("copy_under_product", &Contention::copy_under_product)
      .def_readonly("product_alone", &Contention::product_alone)
      .def_readonly("product_under_copy", &Contention::product_under_copy);

  py::class_<OpCost>(m, "OpCost", R"(Cost of starting operations that do nothing.

Attributes
----------
op : ProbeResult
    One of many in a running pass: every thread takes part and waits for all others.
wake : ProbeResult
    From a sleeping pool to the end of its first operation, once per pass.)")
      .def_readonly("op", &OpCost::op)
      .def_readonly("wake", &OpCost::wake);

  py::class_<Peak>(m, "Peak", R"(Multiply-adds in registers, which no kernel of the same instruction set exceeds.

Attributes
----------
bytes : ProbeResult
    Products of 8-bit numbers, summed in 32 bits.
floats : ProbeResult
    Of 32 bits.)")
      .def_readonly("bytes", &Peak::bytes)
      .def_readonly("floats", &Peak::floats);
}

using Values = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

Values multiply(const std::string& type_name, const std::string& layout_name, const Bytes& weights, const Values& activations,
                const std::string& path_name) {
  const pshard::WeightType type = pshard::weight_type(type_name);
  const pshard::Layout layout = pshard::layout(layout_name);
  const pshard::Kernels& kernels = pshard::kernels(pshard::cpu_path(path_name));
  if (weights.ndim() != 2 || activations.ndim() != 2) throw std::invalid_argument("weights and activations must have two dimensions");
  const int64_t n_rows = weights.shape(0);
  const int64_t batch = activations.shape(0);
  const int64_t n_columns = activations.shape(1);
  pshard::Matmul matmul(kernels, type, layout, n_rows, n_columns, batch, 1);
  if (matmul.weight_bytes() != weights.nbytes()) {
    throw std::invalid_argument("weights have " + std::to_string(weights.nbytes()) + " bytes, " + type_name + " of this shape has " +
                                std::to_string(matmul.weight_bytes()));
  }
  std::copy_n(activations.data(), batch * n_columns, matmul.input());
  const uint8_t* rows = weights.data();
  pshard::Buffer interleaved;
  if (layout == pshard::Layout::interleaved) {
    interleaved = pshard::Buffer(matmul.weight_bytes());
    pshard::interleave_rows(type, rows, n_rows, n_columns, interleaved.data());
    rows = interleaved.data();
  }
  matmul.start({rows});
  matmul.run(0);
  Values out({batch, n_rows});
  std::copy_n(matmul.output(), batch * n_rows, out.mutable_data());
  return out;
}

py::array_t<double> dequantise(const std::string& type_name, const Bytes& rows) {
  const pshard::WeightType type = pshard::weight_type(type_name);
  const pshard::WeightFormat& format = pshard::format_of(type);
  if (rows.ndim() != 2 || rows.shape(1) % format.bytes != 0) {
    throw std::invalid_argument("rows must have two dimensions, and whole blocks of " + std::to_string(format.bytes) + " bytes");
  }
  const int64_t n_columns = rows.shape(1) / format.bytes * format.columns;
  py::array_t<double> out({rows.shape(0), n_columns});
  for (int64_t row = 0; row < rows.shape(0); ++row) pshard::dequantise_row(type, rows.data(row, 0), n_columns, out.mutable_data(row, 0));
  return out;
}

Bytes random_rows(const std::string& type_name, int64_t n_rows, int64_t n_columns, uint64_t seed) {
  const pshard::WeightType type = pshard::weight_type(type_name);
  Bytes rows({n_rows, pshard::row_bytes(type, n_columns)});
  pshard::fill_random(type, n_rows, n_columns, seed, rows.mutable_data());
  return rows;
}

}  // namespace

void bind_probe_cpu(py::module_& m) {
  bind_method(m);

  m.def(
      "cpu_paths",
      [] {
        std::vector<std::string> names;
        for (const pshard::CpuPath path : pshard::cpu_paths()) names.push_back(pshard::name_of(path));
        return names;
      },
      "Instruction sets that this build has kernels for and this CPU runs, from the plainest to the fastest.");
  m.def("last_level_cache_bytes", &pshard::last_level_cache_bytes,
        "Bytes of the largest cache, as the operating system tells; 128 MiB where it does not.");

  py::class_<CpuProbe>(m, "CpuProbe", R"(Measures what the CPU and its memory reach. Every result is verified.

Parameters
----------
cpus : list of int
    One thread is pinned to each. Give one CPU per physical core.
max_bytes : int
    Bound of the memory that a probe takes. It is kept between probes.
path : str
    Instruction set, one of `cpu_paths()`; the fastest by default.

Raises
------
ProbeError
    A CPU is not available to this process.
ValueError
    An unknown path, no CPU, or no memory.)")
      .def(py::init([](const std::vector<int>& cpus, int64_t max_bytes, const std::string& path) {
             return std::make_unique<CpuProbe>(cpus, max_bytes, pshard::cpu_path(path));
           }),
           py::arg("cpus"), py::kw_only(), py::arg("max_bytes"), py::arg("path") = "")
      .def_property_readonly("path", [](const CpuProbe& probe) { return pshard::name_of(probe.path()); })
      .def_property_readonly("n_threads", &CpuProbe::size)
      .def("read", &CpuProbe::read, Release(), py::kw_only(), py::arg("n_threads"), py::arg("policy"),
           R"(Read bandwidth of memory: threads sum their own parts of an array far larger than the caches.

Parameters
----------
n_threads : int
    At most as many as there are CPUs.
policy : MeasurePolicy

Returns
-------
ProbeResult
    `n_bytes` is the array.

Raises
------
ProbeError
    A wrong sum, or too little memory.)")
      .def(
          "product",
          [](CpuProbe& probe, const std::string& type, const std::string& layout, int64_t n_rows, int64_t n_columns, int64_t batch,
             int n_threads, const Policy& policy) {
            return probe.product({pshard::weight_type(type), pshard::layout(layout), n_rows, n_columns, batch, 1}, n_threads, policy);
          },
          Release(), py::arg("type"), py::arg("layout"), py::kw_only(), py::arg("n_rows"), py::arg("n_columns"), py::arg("batch"),
          py::arg("n_threads"), py::arg("policy"),
          R"(Product of an n_rows × n_columns matrix with `batch` rows of activations, rounding of the activations included.

Parameters
----------
type : str
    One of `weight_types()` that CPUs multiply.
layout : {"plain", "interleaved"}
    As in the file, or interleaved by rows, where the type is.
n_rows, n_columns, batch : int
n_threads : int
policy : MeasurePolicy

Returns
-------
ProbeResult
    `n_bytes` is the matrix.

Raises
------
ProbeError
    A wrong product, a sample that is too short for the clock, or too little memory.
ValueError
    A type, layout or shape that has no kernel.)")
      .def(
          "experts",
          [](CpuProbe& probe, const std::string& type, const std::string& layout, int64_t n_rows, int64_t n_columns, int64_t batch,
             int64_t n_used, int n_threads, const Policy& policy, bool in_tiles) {
            const auto routing = in_tiles ? pshard::Routing::dense : pshard::Routing::experts;
            return probe.product({pshard::weight_type(type), pshard::layout(layout), n_rows, n_columns, batch, n_used, routing}, n_threads,
                                 policy);
          },
          Release(), py::arg("type"), py::arg("layout"), py::kw_only(), py::arg("n_rows"), py::arg("n_columns"), py::arg("batch"),
          py::arg("n_used"), py::arg("n_threads"), py::arg("policy"), py::arg("in_tiles") = false,
          R"(Products with `n_used` different experts, `batch` rows of activations each.

Parameters
----------
type, layout, n_rows, n_columns, n_threads, policy
    As those of `product`, for each expert.
batch : int
    Rows per expert that is used at all.
n_used : int
in_tiles : bool
    Many rows of activations at once, as pshard's own executor multiplies. llama.cpp does so for plain Q4_K and Q6_K
    alone, and takes those of other experts one by one.

Returns
-------
ProbeResult
    `n_bytes` and `n_flop` are those of all experts that one sample uses.

Raises
------
ProbeError, ValueError
    As `product`.)")
      .def(
          "attention",
          [](CpuProbe& probe, int64_t n_heads, int64_t n_kv_heads, int64_t head_size, int64_t depth, int64_t batch, int n_threads,
             const Policy& policy, const std::string& key_type, const std::string& value_type) {
            const pshard::AttentionShape shape{
                n_heads, n_kv_heads, head_size, depth, batch, pshard::weight_type(key_type), pshard::weight_type(value_type)};
            return probe.attention(shape, n_threads, policy);
          },
          Release(), py::kw_only(), py::arg("n_heads"), py::arg("n_kv_heads"), py::arg("head_size"), py::arg("depth"), py::arg("batch"),
          py::arg("n_threads"), py::arg("policy"), py::arg("key_type") = "F16", py::arg("value_type") = "F16",
          R"(Fused attention of `batch` query tokens over a cache of `depth` cells, each of which every token reads.

Parameters
----------
n_heads, n_kv_heads, head_size : int
depth : int
    Cells.
batch : int
    Query tokens.
n_threads : int
policy : MeasurePolicy
key_type, value_type : {"F16", "Q8_0", "Q4_0"}
    Of the cache. Over F16 many queries go in tiles; over others each goes by itself, as in llama.cpp.

Returns
-------
ProbeResult
    `n_bytes` is the cache; FLOP are 4 × head_size × n_heads × batch × depth.

Raises
------
ProbeError
    As `product`.
ValueError
    A shape or a type that has no kernel.)")
      .def(
          "scan",
          [](CpuProbe& probe, const std::string& kind, int64_t n_heads, int64_t n_rows, int64_t n_columns, int64_t batch, int n_threads,
             const Policy& policy) {
            return probe.scan({scan_kind(kind), n_heads, n_rows, n_columns, batch}, n_threads, policy);
          },
          Release(), py::arg("kind"), py::kw_only(), py::arg("n_heads"), py::arg("n_rows"), py::arg("n_columns"), py::arg("batch"),
          py::arg("n_threads"), py::arg("policy"),
          R"(Scan of a recurrent layer over `batch` tokens of one sequence.

Parameters
----------
kind : {"mamba", "mamba2", "delta_net"}
n_heads, n_rows, n_columns : int
    Of the state: a matrix for each head, with a row for each of its outputs.
batch : int
    Tokens.
n_threads : int
policy : MeasurePolicy

Returns
-------
ProbeResult
    `n_bytes` is the state before; FLOP are 6 for each of its elements and token.

Raises
------
ProbeError
    As `product`.
ValueError
    A kind or a shape that has no kernel.)")
      .def(
          "contention",
          [](CpuProbe& probe, const std::string& type, const std::string& layout, int64_t n_rows, int64_t n_columns, int64_t batch,
             int64_t chunk_bytes, const Policy& policy, int64_t n_used, std::optional<int64_t> room_bytes) {
            const ProductShape shape{pshard::weight_type(type), pshard::layout(layout), n_rows, n_columns, batch, n_used};
            return probe.contention(shape, chunk_bytes, policy, room_bytes.value_or(std::numeric_limits<int64_t>::max()));
          },
          Release(), py::arg("type"), py::arg("layout"), py::kw_only(), py::arg("n_rows"), py::arg("n_columns"), py::arg("batch"),
          py::arg("chunk_bytes"), py::arg("policy"), py::arg("n_used") = 1, py::arg("room_bytes") = std::nullopt,
          R"(How copies and products slow each other down: one thread copies from memory to memory, the others multiply.

Parameters
----------
type, layout, n_rows, n_columns, batch
    As those of `product`.
chunk_bytes : int
    Of one copy.
policy : MeasurePolicy
    For each of the four measurements.
n_used : int
    Experts of one product, each with `batch` rows of activations.
room_bytes : int, optional
    That copies are written to, in turn, as through a slot; no cache holds it by default.

Returns
-------
Contention

Raises
------
ProbeError
    As `product`; and where there is only one CPU.
ValueError
    As `product`.)")
      .def("op_cost", &CpuProbe::op_cost, Release(), py::kw_only(), py::arg("n_threads"), py::arg("policy"),
           R"(Cost of starting one operation on threads that poll, and of waking them.

Parameters
----------
n_threads : int
policy : MeasurePolicy

Returns
-------
OpCost
    Seconds are those of one operation.

Raises
------
ProbeError
    An operation was left out, or the clock is too coarse.)")
      .def("peak", &CpuProbe::peak, Release(), py::kw_only(), py::arg("n_threads"), py::arg("policy"),
           R"(What the multiplying units do at most.

Parameters
----------
n_threads : int
policy : MeasurePolicy

Returns
-------
Peak

Raises
------
ProbeError
    A wrong sum.)");

  const auto probe_storage = [](const std::string& path, int64_t n_bytes, int64_t chunk_bytes, const pshard::Policy& policy) {
    return pshard::probe_storage(path, n_bytes, chunk_bytes, policy);
  };
  m.def("probe_storage", probe_storage, Release(), py::arg("path"), py::kw_only(), py::arg("n_bytes"), py::arg("chunk_bytes"),
        py::arg("policy"),
        R"(Sequential reads of a file past the cache of the operating system.

Parameters
----------
path : str
n_bytes : int
    Only the first so many are read, again from the start where the policy asks for more.
chunk_bytes : int
    That one sample reads, a multiple of 4096.
policy : MeasurePolicy

Returns
-------
ProbeResult
    `note` says how the cache was passed by.

Raises
------
ProbeError
    The file cannot be read, is shorter than one chunk, or two reads of the same bytes differ.
ValueError
    `chunk_bytes` is no multiple of a page.)");

  m.def("dequantise", &dequantise, py::arg("type"), py::arg("rows"), R"(Weights as numbers: what results of kernels are held against.

Parameters
----------
type : str
    One of `weight_types()`.
rows : numpy.ndarray of uint8, shape (n_rows, bytes of a row)
    Plain rows, as GGUF stores them.

Returns
-------
numpy.ndarray of float64, shape (n_rows, n_columns)

Raises
------
ValueError
    An unknown type, or rows that are not whole blocks.)");
  m.def("random_rows", &random_rows, py::arg("type"), py::kw_only(), py::arg("n_rows"), py::arg("n_columns"), py::arg("seed"),
        R"(Rows of weights as probes multiply them: random codes, and scales of such magnitudes that nothing overflows.

Parameters
----------
type : str
    One of `weight_types()`.
n_rows, n_columns : int
seed : int

Returns
-------
numpy.ndarray of uint8, shape (n_rows, bytes of a row)

Raises
------
ValueError
    An unknown type, or columns that are not whole blocks.)");
  m.def("multiply", &multiply, py::arg("type"), py::arg("layout"), py::kw_only(), py::arg("weights"), py::arg("activations"),
        py::arg("path") = "", R"(Multiply by one of the kernels that are measured.

Parameters
----------
type, layout : str
    As those of `CpuProbe.product`. Interleaving is done here.
weights : numpy.ndarray of uint8, shape (n_rows, bytes of a row)
    Plain rows, as GGUF stores them.
activations : numpy.ndarray of float32, shape (batch, n_columns)
    Finite. Rounded to eight bits per value, with weights in F16 or BF16 to those, with F32 not at all, as llama.cpp
    does.
path : str
    One of `cpu_paths()`; the fastest by default.

Returns
-------
numpy.ndarray of float32, shape (batch, n_rows)

Raises
------
ValueError
    A type, layout, path or shape that has no kernel.)");
}
