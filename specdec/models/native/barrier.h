// Where the threads of a forward wait for each other: a short spin, then asleep.
//
// OpenMP's own barrier spins for milliseconds. On a machine with other work a thread then spins while the core of the
// one that it waits for is taken, and is out of its own time when that one arrives: two threads are many times slower
// than one.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>

class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const int now = phase.load();
    if (arrived.fetch_add(1) + 1 == threads) {
      arrived.store(0);
      {
        const std::lock_guard<std::mutex> guard(mutex);
        phase.fetch_add(1);
      }
      changed.notify_all();
      return;
    }
    for (int turn = 0; turn < SPINS; turn++) {
      if (phase.load() != now) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    std::unique_lock<std::mutex> guard(mutex);
    changed.wait(guard, [&] { return phase.load() != now; });
  }

 private:
  static constexpr int SPINS = 2000;  // some 50 us
  std::atomic<int> arrived{0}, phase{0};
  std::mutex mutex;
  std::condition_variable changed;
};
