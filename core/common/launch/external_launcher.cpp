#include "external_launcher.h"

#include <map>
#include <mutex>
#include <utility>

namespace alignmask {

namespace {

struct ExternalLaunchers {
  std::mutex mutex;
  std::map<int, ExternalLauncher> of_device;
};

/// Never destroyed: a launcher may belong to an interpreter that ends earlier than this library.
ExternalLaunchers& launchers() {
  static ExternalLaunchers& all = *new ExternalLaunchers;
  return all;
}

}  // namespace

void set_external_launcher(int index, ExternalLauncher launcher) {
  ExternalLaunchers& all = launchers();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::swap(all.of_device[index], launcher);
}

bool run_externally(const LaunchTarget& target, const std::vector<Launch>& launches) {
  ExternalLauncher launcher;
  {
    ExternalLaunchers& all = launchers();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.of_device.find(target.device.index);
    if (found == all.of_device.end() || !found->second) return false;
    launcher = found->second;
  }
  launcher(target, launches);
  return true;
}

}  // namespace alignmask
