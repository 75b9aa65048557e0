#include "bindings/bindings.hpp"
#include "latency/latency_series.hpp"

using namespace py::literals;

void bind_latency(py::module_& m) {
  using pshard::ExpectedSeconds;
  using pshard::LatencyCounters;
  using pshard::LatencyEstimate;
  using pshard::LatencySeries;
  using pshard::LatencyShift;
  using pshard::SeriesOptions;
  m.def("alarm_height", &pshard::alarm_height, "values_per_false_alarm"_a);
  m.def("interval_deviations", &pshard::interval_deviations, "passages_per_window"_a);
  py::class_<LatencyEstimate>(m, "LatencyEstimate",
                              "What a window of latencies says; median and average are seconds over expected seconds.")
      .def_readonly("samples", &LatencyEstimate::samples)
      .def_readonly("outliers", &LatencyEstimate::outliers)
      .def_readonly("median", &LatencyEstimate::median)
      .def_readonly("average", &LatencyEstimate::average)
      .def_readonly("scale", &LatencyEstimate::scale)
      .def_readonly("correlation", &LatencyEstimate::correlation)
      .def_readonly("error", &LatencyEstimate::error);
  py::class_<LatencyShift>(m, "LatencyShift", "A lasting change: its factor, when it probably began and when it was certain.")
      .def_readonly("factor", &LatencyShift::factor)
      .def_readonly("began_unix_s", &LatencyShift::began_unix_s)
      .def_readonly("found_unix_s", &LatencyShift::found_unix_s);
  py::class_<LatencyCounters>(m, "LatencyCounters", "Of all valid latencies since the last reset.")
      .def_readonly("forwards", &LatencyCounters::forwards)
      .def_readonly("total_us", &LatencyCounters::total_us)
      .def_readonly("min_us", &LatencyCounters::min_us)
      .def_readonly("max_us", &LatencyCounters::max_us)
      .def_readonly("last_us", &LatencyCounters::last_us)
      .def_readonly("last_unix_s", &LatencyCounters::last_unix_s)
      .def_readonly("invalid", &LatencyCounters::invalid)
      .def_readonly("warm_up", &LatencyCounters::warm_up)
      .def_readonly("clock_backwards", &LatencyCounters::clock_backwards);
  py::class_<LatencySeries>(m, "LatencySeries", "Latencies of one shard in one phase.")
      .def(py::init([](int64_t window, int64_t warm_up, int64_t settle, double half_life, double alarm_height, double deviations,
                       std::vector<double> expected_tokens, std::vector<double> expected_seconds) {
             return LatencySeries({window, warm_up, settle, half_life, alarm_height, deviations},
                                  {std::move(expected_tokens), std::move(expected_seconds)});
           }),
           py::kw_only(), "window"_a, "warm_up"_a, "settle"_a, "half_life"_a, "alarm_height"_a, "deviations"_a, "expected_tokens"_a,
           "expected_seconds"_a)
      .def("record", &LatencySeries::record, "latency_us"_a, "n_tokens"_a, "time_unix_s"_a)
      .def("record_invalid", &LatencySeries::record_invalid)
      .def("reset", &LatencySeries::reset)
      .def("estimate", &LatencySeries::estimate)
      .def_property_readonly("counters", [](const LatencySeries& series) { return series.counters(); })
      .def_property_readonly("samples", &LatencySeries::samples)
      .def_property_readonly("shifts", &LatencySeries::shifts)
      .def_property_readonly("shift", [](const LatencySeries& series) { return series.shift(); })
      .def_property_readonly("is_fresh", &LatencySeries::is_fresh);
}
