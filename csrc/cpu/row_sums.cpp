#include "row_sums.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "clones.h"

namespace snnkern::cpu {
namespace {

// Sums that stay in registers while rows go by.
constexpr std::int64_t kMostVectors = 12;

// Of rows and sums the stretch that begins at `first`.
using AddRows = void (*)(const float* rows, const RowSums& p, std::int64_t first);

// Clones of a function take their vectors apart before they know their instruction set: each one
// here is told its own from the start. Products and sums are rounded one by one, on every machine.
#define SNN_ADD_ROWS(name, target, bytes)                                                        \
  struct name {                                                                                  \
    static constexpr std::int64_t kLanes = (bytes) / sizeof(float);                              \
    using Vector [[gnu::vector_size(bytes), gnu::aligned(4), gnu::may_alias]] = float;           \
                                                                                                 \
    template <std::int64_t kVectors, bool kValued>                                               \
    target static void run(const float* rows, const RowSums& p, std::int64_t first) {            \
      const std::int64_t step = p.bit_step;                                                      \
      for (std::int64_t line = 0; line < p.lines; ++line) {                                      \
        std::int64_t at = line * p.line_words;                                                   \
        float* sum = p.sums + line * p.line_sums + first;                                        \
        for (std::int64_t c = 0; c < p.cells; ++c, at += p.cell_words, sum += p.cell_sums) {     \
          std::uint64_t active = 0;                                                              \
          for (std::int64_t w = at; w < at + p.words; ++w) active |= p.events.words[w];          \
          if (!active) continue;                                                                 \
          Vector acc[kVectors];                                                                  \
          Vector* const sums = reinterpret_cast<Vector*>(sum);                                   \
          _Pragma("GCC unroll 16") for (std::int64_t k = 0; k < kVectors; ++k) acc[k] = sums[k]; \
          const float* base = rows + first;                                                      \
          for (std::int64_t w = at; w < at + p.words; ++w, base += p.word_step) {                \
            const float* value = kValued ? p.events.values + p.events.starts[w] : nullptr;       \
            for (std::uint64_t word = p.events.words[w]; word; word &= word - 1) {               \
              const Vector* const row =                                                          \
                  reinterpret_cast<const Vector*>(base + std::countr_zero(word) * step);         \
              const float worth = kValued ? *value++ : 1.0f;                                     \
              _Pragma("GCC unroll 16") for (std::int64_t k = 0; k < kVectors; ++k) acc[k] +=     \
                  kValued ? worth * row[k] : row[k];                                             \
            }                                                                                    \
          }                                                                                      \
          _Pragma("GCC unroll 16") for (std::int64_t k = 0; k < kVectors; ++k) sums[k] = acc[k]; \
        }                                                                                        \
      }                                                                                          \
    }                                                                                            \
  }

SNN_ADD_ROWS(Portable, , 16);
#ifdef SNN_X86_LEVELS
SNN_ADD_ROWS(Level3, [[gnu::target("arch=x86-64-v3")]], 32);
SNN_ADD_ROWS(Level4, [[gnu::target("arch=x86-64-v4")]], 64);
#endif
#undef SNN_ADD_ROWS

// By number of vectors.
struct Table {
  std::int64_t lanes;
  std::array<AddRows, kMostVectors + 1> ones, valued;
};

template <class Set>
Table table_of() {
  return [&]<std::size_t... kCount>(std::index_sequence<kCount...>) {
    return Table{Set::kLanes,
                 {nullptr, &Set::template run<kCount + 1, false>...},
                 {nullptr, &Set::template run<kCount + 1, true>...}};
  }(std::make_index_sequence<kMostVectors>{});
}

Table best_table() {
#ifdef SNN_X86_LEVELS
  if (__builtin_cpu_supports("x86-64-v4")) return table_of<Level4>();
  if (__builtin_cpu_supports("x86-64-v3")) return table_of<Level3>();
#endif
  return table_of<Portable>();
}

const Table kTable = best_table();

}  // namespace

void add_rows(std::int64_t length, const float* rows, const RowSums& p) {
  const std::int64_t most = kMostVectors * kTable.lanes;
  const auto& run = p.events.starts ? kTable.valued : kTable.ones;
  for (std::int64_t first = 0; first < length; first += most) {
    run[std::min(most, length - first) / kTable.lanes](rows, p, first);
  }
}

}  // namespace snnkern::cpu
