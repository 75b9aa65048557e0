#include "probe/matmul.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "probe/random.hpp"
#include "probe_cases.hpp"

namespace pshard {
namespace {

// A matrix as a file holds it, and as a kernel reads it.
struct Weights {
  Weights(WeightType type, Layout layout, int64_t n_rows, int64_t n_columns, uint64_t seed = 7)
      : plain(n_rows * row_bytes(type, n_columns)), laid_out(plain.size()) {
    fill_random(type, n_rows, n_columns, seed, plain.data());
    if (layout == Layout::plain) {
      std::copy_n(plain.data(), plain.size(), laid_out.data());
    } else {
      interleave_rows(type, plain.data(), n_rows, n_columns, laid_out.data());
    }
  }
  Buffer plain;
  Buffer laid_out;
};

struct Case {
  CpuPath path;
  WeightType type;
  Layout layout;
};

std::vector<Case> all_kernels() {
  std::vector<Case> cases;
  for (const CpuPath path : cpu_paths()) {
    for (int type = 0; type < kWeightTypes; ++type) {
      for (int layout = 0; layout < kLayouts; ++layout) {
        const Case kernel{path, static_cast<WeightType>(type), static_cast<Layout>(layout)};
        if (kernels(path).multiply.of(kernel.type, kernel.layout) != nullptr) cases.push_back(kernel);
      }
    }
  }
  return cases;
}

class EveryKernel : public testing::TestWithParam<Case> {
 protected:
  const Kernels& table = kernels(GetParam().path);
  WeightType type = GetParam().type;
  Layout layout = GetParam().layout;
};

TEST(Kernels, EveryPathHasTheSame) {
  int n = 0;
  for (int type = 0; type < kWeightTypes; ++type) {
    n += (cpu_multiplies(static_cast<WeightType>(type)) ? 1 : 0) + (cpu_interleaves(static_cast<WeightType>(type)) ? 1 : 0);
  }
  EXPECT_GE(n, 7);
  EXPECT_EQ(all_kernels().size(), n * cpu_paths().size());
}

// Every count of rows that a tile or a group leaves over, and columns over more than one panel.
TEST_P(EveryKernel, EqualsDoublePrecision) {
  for (const int64_t n_columns : {int64_t{256}, int64_t{1280}, int64_t{2304}}) {
    for (const int64_t n_rows : {1, 3, 16, 21, 64, 80}) {
      if (layout == Layout::interleaved && n_rows % kGroupRows != 0) continue;
      const Weights weights(type, layout, n_rows, n_columns);
      for (const int64_t batch : {1, 2, 3, 7, 8, 13, 70}) {
        Matmul matmul(table, type, layout, n_rows, n_columns, batch, 1);
        matmul.start({weights.laid_out.data()});
        matmul.run(0);
        EXPECT_EQ(matmul.fault(weights.plain.data()), "") << n_rows << " x " << n_columns << ", batch " << batch;
      }
    }
  }
}

// All outputs, not samples, against those of the plain kernels.
TEST_P(EveryKernel, EqualsScalar) {
  constexpr int64_t n_rows = 48, n_columns = 512;
  const Weights weights(type, layout, n_rows, n_columns);
  for (const int64_t batch : {1, 6, 19}) {
    Matmul matmul(table, type, layout, n_rows, n_columns, batch, 1);
    matmul.start({weights.laid_out.data()});
    matmul.run(0);
    Matmul scalar(kScalarKernels, type, Layout::plain, n_rows, n_columns, batch, 1);
    scalar.start({weights.plain.data()});
    scalar.run(0);
    for (int64_t i = 0; i < n_rows * batch; ++i) {
      ASSERT_NEAR(matmul.output()[i], scalar.output()[i], 2e-4 * std::max(1.0F, std::abs(scalar.output()[i]))) << i << ", batch " << batch;
    }
  }
}

// As above for experts, whose rows of activations mostly go one by one.
TEST_P(EveryKernel, EqualsDoublePrecisionForExperts) {
  for (const int64_t n_rows : {8, 40, 88}) {
    const Weights weights(type, layout, n_rows, 1280);
    for (const int64_t batch : {1, 4, 19}) {
      Matmul matmul(table, type, layout, n_rows, 1280, batch, 1, Routing::experts);
      matmul.start({weights.laid_out.data(), weights.laid_out.data()});
      matmul.run(0);
      EXPECT_EQ(matmul.fault(weights.plain.data()), "") << n_rows << " rows, batch " << batch;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, EveryKernel, testing::ValuesIn(all_kernels()), [](const auto& tested) {
  const Case& kernel = tested.param;
  return name_of(kernel.path) + "_" + name_of(kernel.type) + (kernel.layout == Layout::plain ? "" : "_interleaved");
});

TEST(Matmul, ThreadsShareAllRowsOfAllMatrices) {
  constexpr int64_t n_rows = 200, n_columns = 256, batch = 5;
  constexpr int n_threads = 3;
  ThreadPool pool(test_cpus(n_threads));
  const Weights weights(WeightType::q4_k, Layout::plain, n_rows, n_columns);
  Matmul matmul(kScalarKernels, WeightType::q4_k, Layout::plain, n_rows, n_columns, batch, n_threads);
  for (int round = 0; round < 3; ++round) {
    matmul.start({weights.laid_out.data(), weights.laid_out.data(), weights.laid_out.data(), weights.laid_out.data()});
    matmul.spoil_output();
    pool.run([&](int thread) { matmul.run(thread); }, steady_timer());
    EXPECT_EQ(matmul.fault(weights.plain.data()), "");
    EXPECT_EQ(std::count_if(matmul.output(), matmul.output() + 4 * n_rows * batch, [](float value) { return std::isnan(value); }), 0);
  }
}

// Shares that threads keep, chunks that they take, and more threads than there are groups of rows.
TEST(Matmul, ThreadsShareAllRowsOfAllExperts) {
  constexpr int64_t n_columns = 256, batch = 19;
  constexpr int n_threads = 3;
  ThreadPool pool(test_cpus(n_threads));
  for (const auto& [layout, n_rows] : {std::pair{Layout::plain, 200}, {Layout::interleaved, 200}, {Layout::interleaved, 16}}) {
    const Weights weights(WeightType::q4_0, layout, n_rows, n_columns);
    Matmul matmul(kScalarKernels, WeightType::q4_0, layout, n_rows, n_columns, batch, n_threads, Routing::experts);
    matmul.start({weights.laid_out.data(), weights.laid_out.data(), weights.laid_out.data()});
    matmul.spoil_output();
    pool.run([&](int thread) { matmul.run(thread); }, steady_timer());
    EXPECT_EQ(matmul.fault(weights.plain.data()), "");
    EXPECT_EQ(std::count_if(matmul.output(), matmul.output() + 3 * n_rows * batch, [](float value) { return std::isnan(value); }), 0);
  }
}

// What llama.cpp has no tiles for: each call of the kernel gets one row of activations.
TEST(Matmul, ExpertsGoRowByRow) {
  static int64_t most = 0;
  Kernels counting = kScalarKernels;
  for (auto& layouts : counting.multiply.kernels) {
    for (MultiplyRows& multiply : layouts) {
      if (multiply != nullptr) {
        multiply = [](const uint8_t*, int64_t, const Activations&, int64_t first, int64_t last, float*, int64_t, uint8_t*) {
          most = std::max(most, last - first);
        };
      }
    }
  }
  const auto most_of = [&](WeightType type, Layout layout, Routing routing) {
    const Weights weights(type, layout, 16, 256);
    Matmul matmul(counting, type, layout, 16, 256, 19, 1, routing);
    matmul.start({weights.laid_out.data()});
    most = 0;
    matmul.run(0);
    return most;
  };
  for (const WeightType type : {WeightType::f32, WeightType::bf16, WeightType::q8_0, WeightType::q5_0, WeightType::iq4_nl}) {
    EXPECT_EQ(most_of(type, Layout::plain, Routing::experts), 1);
    EXPECT_EQ(most_of(type, Layout::plain, Routing::dense), 19);
  }
  for (const WeightType type : {WeightType::q4_1, WeightType::q5_1, WeightType::mxfp4}) {
    for (const Routing routing : {Routing::experts, Routing::dense}) EXPECT_EQ(most_of(type, Layout::plain, routing), 1);
  }
  for (const WeightType type : {WeightType::q4_0, WeightType::q4_k}) EXPECT_EQ(most_of(type, Layout::interleaved, Routing::experts), 1);
  for (const WeightType type : {WeightType::q4_k, WeightType::iq4_xs}) EXPECT_EQ(most_of(type, Layout::plain, Routing::experts), 19);
}

// What a sample of a measurement would be.
double sample_of(Matmul& matmul) {
  matmul.run(0);
  return 1.0;
}

TEST(Matmul, AKernelThatLeavesOutAColumnIsRefused) {
  Kernels broken = kScalarKernels;
  broken.multiply.of(WeightType::q8_0) = [](const uint8_t* weights, int64_t n_rows, const Activations& x, int64_t first, int64_t last,
                                            float* out, int64_t stride, uint8_t* scratch) {
    kScalarKernels.multiply.of(WeightType::q8_0)(weights, n_rows, x, first, last, out, stride, scratch);
    for (int64_t row = 0; row < n_rows; ++row) {
      std::vector<double> numbers(static_cast<std::size_t>(x.n_columns));
      dequantise_row(WeightType::q8_0, weights + row * row_bytes(WeightType::q8_0, x.n_columns), x.n_columns, numbers.data());
      for (int64_t j = first; j < last; ++j) out[j * stride + row] -= static_cast<float>(numbers[5] * x.value(j, 5));
    }
  };
  const Weights weights(WeightType::q8_0, Layout::plain, 32, 64);
  Matmul matmul(broken, WeightType::q8_0, Layout::plain, 32, 64, 2, 1);
  matmul.start({weights.laid_out.data()});
  const Timer timer{[] { return 0.0; }, 1e-9};
  EXPECT_THROW(measure([&] { return sample_of(matmul); }, [&] { return matmul.fault(weights.plain.data()); }, Policy{}, timer), ProbeError);
}

TEST(Matmul, AKernelThatDoesNothingIsRefused) {
  const Weights weights(WeightType::f16, Layout::plain, 8, 32);
  Matmul matmul(kScalarKernels, WeightType::f16, Layout::plain, 8, 32, 1, 1);
  matmul.start({weights.laid_out.data()});
  matmul.run(0);
  EXPECT_EQ(matmul.fault(weights.plain.data()), "");
  matmul.spoil_output();
  EXPECT_NE(matmul.fault(weights.plain.data()), "");
}

TEST(Matmul, WeightsOfAnotherMatrixAreFound) {
  const Weights weights(WeightType::q6_k, Layout::plain, 16, 256, 1);
  const Weights others(WeightType::q6_k, Layout::plain, 16, 256, 2);
  Matmul matmul(kScalarKernels, WeightType::q6_k, Layout::plain, 16, 256, 1, 1);
  matmul.start({weights.laid_out.data()});
  matmul.run(0);
  EXPECT_NE(matmul.fault(others.plain.data()), "");
}

TEST(Matmul, RefusesShapesThatNoKernelMultiplies) {
  const auto with = [](WeightType type, Layout layout, int64_t n_rows, int64_t n_columns, int64_t batch) {
    Matmul(kScalarKernels, type, layout, n_rows, n_columns, batch, 1);
  };
  EXPECT_THROW(with(WeightType::q6_k, Layout::interleaved, 16, 256, 1), std::invalid_argument);
  EXPECT_THROW(with(WeightType::q4_k, Layout::interleaved, 12, 256, 1), std::invalid_argument);
  EXPECT_THROW(with(WeightType::q4_k, Layout::plain, 16, 128, 1), std::invalid_argument);
  EXPECT_THROW(with(WeightType::f16, Layout::plain, 16, 24, 1), std::invalid_argument);
  EXPECT_THROW(with(WeightType::q8_0, Layout::plain, 0, 32, 1), std::invalid_argument);
  EXPECT_THROW(with(WeightType::q8_0, Layout::plain, 16, 32, 0), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
