#include "model/gguf_skip.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pshard {
namespace {

std::vector<std::byte> strings(const std::vector<std::string>& values) {
  std::vector<std::byte> bytes;
  for (const std::string& value : values) {
    for (size_t i = 0; i < 8; ++i) bytes.push_back(static_cast<std::byte>(value.size() >> (8 * i)));
    for (const char c : value) bytes.push_back(static_cast<std::byte>(c));
  }
  return bytes;
}

TEST(SkipStrings, StopsAtTheCountOrAtTheFirstIncompleteString) {
  const std::vector<std::byte> data = strings({"abc", "", std::string(300, 'x')});
  const auto skip = [&](size_t size, int64_t count) {
    const SkippedStrings skipped = skip_strings(std::span(data).first(size), count);
    return std::pair(skipped.n_strings, skipped.n_bytes);
  };
  EXPECT_EQ(skip(data.size(), 3), std::pair(int64_t{3}, static_cast<int64_t>(data.size())));
  EXPECT_EQ(skip(data.size(), 9), std::pair(int64_t{3}, static_cast<int64_t>(data.size())));
  EXPECT_EQ(skip(data.size(), 2), std::pair(int64_t{2}, int64_t{19}));
  EXPECT_EQ(skip(data.size() - 1, 3), std::pair(int64_t{2}, int64_t{19}));
  EXPECT_EQ(skip(20, 3), std::pair(int64_t{2}, int64_t{19}));
  EXPECT_EQ(skip(10, 3), std::pair(int64_t{0}, int64_t{0}));
  EXPECT_EQ(skip(0, 3), std::pair(int64_t{0}, int64_t{0}));
  EXPECT_EQ(skip(data.size(), 0), std::pair(int64_t{0}, int64_t{0}));
}

TEST(SkipStrings, LengthsThatWrapAroundDoNotMatter) {
  const std::vector<std::byte> data(64, std::byte{0xff});
  EXPECT_EQ(skip_strings(data, 5).n_bytes, 0);
  EXPECT_THROW((void)skip_strings(data, -1), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
