#include "external_launcher.h"

#include <map>
#include <mutex>
#include <utility>

namespace alignmask {

namespace {

struct Launchers {
  std::mutex mutex;
  std::map<int, Launcher> of_device;
};

/// Never destroyed: a launcher may belong to an interpreter that ends earlier than this library.
Launchers& launchers() {
  static Launchers& all = *new Launchers;
  return all;
}

}  // namespace

void set_launcher(int index, Launcher launcher) {
  Launchers& all = launchers();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::swap(all.of_device[index], launcher);
}

bool run_by_launcher(const LaunchTarget& target, const std::vector<Launch>& launches) {
  Launcher launcher;
  {
    Launchers& all = launchers();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto found = all.of_device.find(target.device.index);
    if (found == all.of_device.end() || !found->second) return false;
    launcher = found->second;
  }
  launcher(target, launches);
  return true;
}

}  // namespace alignmask
