// Repeats the calls of a corpus (corpus.py), one after the other.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int count, char** arguments) {
  if (count != 2) return 2;
  std::ifstream file(arguments[1], std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
  std::size_t at = 0;
  int calls = 0;
  while (at + 2 <= bytes.size()) {  // two bytes of length, then so many
    const std::size_t size = data[at] + 256u * data[at + 1];
    at += 2;
    if (at + size > bytes.size()) break;
    LLVMFuzzerTestOneInput(data + at, size);
    at += size;
    ++calls;
  }
  std::printf("%d calls\n", calls);
  return calls == 0 || at != bytes.size();
}
