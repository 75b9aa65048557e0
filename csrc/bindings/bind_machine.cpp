#include <pybind11/native_enum.h>

#include <map>
#include <stdexcept>
#include <string>

#include "bindings/bindings.hpp"
#include "machine/machine.hpp"

namespace {

using namespace py::literals;
using pshard::AttentionRates;
using pshard::Basis;
using pshard::LinkCurve;
using pshard::Machine;
using pshard::Processor;
using pshard::RateSeries;
using pshard::ShapeRates;

template <typename Entry>
using Table = std::array<Entry, pshard::kTypeCount>;

// Python sees a table as {ggml type number: entry}, without the empty ones.
template <typename Entry>
std::map<int, Entry> to_map(const Table<Entry>& table) {
  std::map<int, Entry> map;
  for (size_t type = 0; type < table.size(); ++type) {
    if (!table[type].empty()) map.emplace(static_cast<int>(type), table[type]);
  }
  return map;
}

template <typename Entry>
Table<Entry> from_map(const std::map<int, Entry>& map) {
  Table<Entry> table;
  for (const auto& [type, entry] : map) {
    if (type < 0 || type >= pshard::kTypeCount) {
      throw std::invalid_argument("ggml type " + std::to_string(type) + " is not within 0 and " + std::to_string(pshard::kTypeCount - 1));
    }
    table[static_cast<size_t>(type)] = entry;
  }
  return table;
}

void require_points(bool empty) {
  if (empty) throw std::invalid_argument("a series without points has no rate");
}

}  // namespace

void bind_machine(py::module_& m) {
  py::native_enum<Basis>(m, "Basis", "enum.IntEnum", "Where a figure comes from, from the most to the least trustworthy.")
      .value("measured", Basis::measured)
      .value("imported", Basis::imported)
      .value("reference", Basis::reference)
      .value("estimated", Basis::estimated)
      .finalize();

  py::class_<RateSeries>(m, "RateSeries", "FLOP/s that a kernel reaches over its batch.")
      .def(py::init([](std::vector<double> batch, std::vector<double> flop_per_second, Basis basis, double spread) {
             return RateSeries{std::move(batch), std::move(flop_per_second), basis, spread};
           }),
           "batch"_a = std::vector<double>{}, "flop_per_second"_a = std::vector<double>{},
           py::arg_v("basis", Basis::estimated, "Basis.estimated"), "spread"_a = 0.0)
      .def_readwrite("batch", &RateSeries::batch)
      .def_readwrite("flop_per_second", &RateSeries::flop_per_second)
      .def_readwrite("basis", &RateSeries::basis)
      .def_readwrite("spread", &RateSeries::spread)
      .def(
          "rate",
          [](const RateSeries& series, double rows) {
            require_points(series.empty() || series.batch.size() != series.flop_per_second.size());
            if (!(rows > 0.0)) throw std::invalid_argument("a rate needs a positive batch");
            return series.rate(rows);
          },
          "batch"_a, "FLOP/s at a batch.");

  py::class_<AttentionRates>(m, "AttentionRates", "FLOP/s of attention over query tokens, for caches of about one depth.")
      .def(py::init([](double depth, RateSeries rates, double first_bytes_per_second) {
             return AttentionRates{depth, std::move(rates), first_bytes_per_second};
           }),
           "depth"_a, "rates"_a, "first_bytes_per_second"_a = 0.0)
      .def_readwrite("depth", &AttentionRates::depth)
      .def_readwrite("rates", &AttentionRates::rates)
      .def_readwrite("first_bytes_per_second", &AttentionRates::first_bytes_per_second);
  py::class_<ShapeRates>(m, "ShapeRates", "Rates of one shape of matrix, which was itself measured; they go before the series of its type.")
      .def(py::init([](bool is_routed, int32_t type, int64_t n_rows, int64_t n_columns, RateSeries series) {
             return ShapeRates{is_routed, type, n_rows, n_columns, std::move(series)};
           }),
           py::kw_only(), "is_routed"_a, "type"_a, "n_rows"_a, "n_columns"_a, "series"_a)
      .def_readonly("is_routed", &ShapeRates::is_routed)
      .def_readonly("type", &ShapeRates::type)
      .def_readonly("n_rows", &ShapeRates::n_rows)
      .def_readonly("n_columns", &ShapeRates::n_columns)
      .def_readonly("series", &ShapeRates::series);

  py::class_<Processor>(m, "Processor", "Rooflines of the GPU, or of the CPU at one thread count.")
      .def(py::init<>())
      .def_readwrite("memory_bytes_per_second", &Processor::memory_bytes_per_second)
      .def_readwrite("memory_peak_bytes_per_second", &Processor::memory_peak_bytes_per_second)
      .def_readwrite("peak_flop_per_second", &Processor::peak_flop_per_second)
      .def_readwrite("op_seconds", &Processor::op_seconds)
      .def_readwrite("skips_masked", &Processor::skips_masked)
      .def_readwrite("n_threads", &Processor::n_threads)
      .def_readwrite("basis", &Processor::basis)
      .def_readwrite("spread", &Processor::spread)
      .def_readwrite("shapes", &Processor::shapes)
      .def_readwrite("copied_shapes", &Processor::copied_shapes)
      .def_readwrite("attention", &Processor::attention)
      .def_property(
          "attention_by_query", [](const Processor& p) { return to_map(p.attention_by_query); },
          [](Processor& p, const std::map<int, pshard::AttentionTable>& tables) { p.attention_by_query = from_map(tables); })
      .def_readwrite("mamba", &Processor::mamba)
      .def_readwrite("mamba2", &Processor::mamba2)
      .def_readwrite("delta_net", &Processor::delta_net)
      .def_property(
          "mul_mat", [](const Processor& p) { return to_map(p.mul_mat); },
          [](Processor& p, const std::map<int, RateSeries>& series) { p.mul_mat = from_map(series); })
      .def_property(
          "mul_mat_id", [](const Processor& p) { return to_map(p.mul_mat_id); },
          [](Processor& p, const std::map<int, RateSeries>& series) { p.mul_mat_id = from_map(series); });

  py::class_<LinkCurve>(m, "LinkCurve", "Bytes/s over the size of one copy, in one direction, from page-locked memory.")
      .def(py::init([](std::vector<double> chunk_bytes, std::vector<double> bytes_per_second, double latency_seconds,
                       double peak_bytes_per_second, Basis basis, double spread) {
             return LinkCurve{std::move(chunk_bytes), std::move(bytes_per_second), latency_seconds, peak_bytes_per_second, basis, spread};
           }),
           "chunk_bytes"_a = std::vector<double>{}, "bytes_per_second"_a = std::vector<double>{}, "latency_seconds"_a = 0.0,
           "peak_bytes_per_second"_a = 0.0, py::arg_v("basis", Basis::estimated, "Basis.estimated"), "spread"_a = 0.0)
      .def_readwrite("chunk_bytes", &LinkCurve::chunk_bytes)
      .def_readwrite("bytes_per_second", &LinkCurve::bytes_per_second)
      .def_readwrite("latency_seconds", &LinkCurve::latency_seconds)
      .def_readwrite("peak_bytes_per_second", &LinkCurve::peak_bytes_per_second)
      .def_readwrite("basis", &LinkCurve::basis)
      .def_readwrite("spread", &LinkCurve::spread)
      .def(
          "seconds",
          [](const LinkCurve& curve, double n_bytes, double chunk) {
            require_points(curve.chunk_bytes.empty() || curve.chunk_bytes.size() != curve.bytes_per_second.size());
            return curve.seconds(n_bytes, chunk);
          },
          "n_bytes"_a, "chunk"_a, "Seconds for n_bytes in chunks of `chunk` bytes.");

  py::class_<Machine>(m, "Machine", "A machine as the cost model sees it.")
      .def(py::init<>())
      .def_readwrite("name", &Machine::name)
      .def_readwrite("has_gpu", &Machine::has_gpu)
      .def_readwrite("gpu", &Machine::gpu)
      .def_readwrite("cpu", &Machine::cpu)
      .def_readwrite("vram_bytes", &Machine::vram_bytes)
      .def_readwrite("ram_bytes", &Machine::ram_bytes)
      .def_readwrite("up", &Machine::up)
      .def_readwrite("down", &Machine::down)
      .def_readwrite("copy_engines", &Machine::copy_engines)
      .def_readwrite("pageable_bytes_per_second", &Machine::pageable_bytes_per_second)
      .def_readwrite("page_lock_bytes", &Machine::page_lock_bytes)
      .def_readwrite("handoff_to_gpu_seconds", &Machine::handoff_to_gpu_seconds)
      .def_readwrite("handoff_to_cpu_seconds", &Machine::handoff_to_cpu_seconds)
      .def_readwrite("host_bytes_per_second", &Machine::host_bytes_per_second)
      .def_readwrite("cpu_rate_under_copy", &Machine::cpu_rate_under_copy)
      .def_readwrite("copy_rate_under_cpu", &Machine::copy_rate_under_cpu)
      .def_readwrite("gpu_rate_under_copy", &Machine::gpu_rate_under_copy)
      .def_readwrite("copy_rate_under_gpu", &Machine::copy_rate_under_gpu)
      .def("__copy__", [](const Machine& machine) { return Machine(machine); })
      .def("check", &pshard::check, "Raise ValueError, naming the field, where a figure cannot be priced with.");
}
