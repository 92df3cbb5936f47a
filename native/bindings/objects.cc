#include "bindings/objects.h"

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace headrace::bindings {
namespace {

// Objects whose last owner did not hold the GIL.  Never destroyed: threads may outlive the end of the program's main.
struct Graveyard {
  std::mutex mutex;
  std::vector<PyObject*> dead;
  std::atomic<bool> is_empty{true};
};

Graveyard& graveyard() {
  static auto* const instance = new Graveyard;
  return *instance;
}

void let_go(PyObject* object) {
  if (object == nullptr) return;
  if (PyGILState_Check() != 0) {
    Py_DECREF(object);
    return;
  }
  Graveyard& yard = graveyard();
  const std::lock_guard lock(yard.mutex);
  yard.dead.push_back(object);
  yard.is_empty.store(false, std::memory_order_release);
}

struct LetGo {
  void operator()(const void* held) const { let_go(static_cast<PyObject*>(const_cast<void*>(held))); }
};

}  // namespace

std::shared_ptr<const void> hold(py::object object) { return {object.release().ptr(), LetGo()}; }

bool is_object(const std::shared_ptr<const void>& holder) { return std::get_deleter<LetGo>(holder) != nullptr; }

py::object held(const std::shared_ptr<const void>& holder) {
  if (holder == nullptr) return py::none();
  return py::reinterpret_borrow<py::object>(static_cast<PyObject*>(const_cast<void*>(holder.get())));
}

void let_go(py::object& object) { let_go(object.release().ptr()); }

void bury_the_dead() {
  Graveyard& yard = graveyard();
  if (yard.is_empty.load(std::memory_order_acquire)) return;
  std::vector<PyObject*> dead;
  {
    const std::lock_guard lock(yard.mutex);
    dead.swap(yard.dead);
    yard.is_empty.store(true, std::memory_order_release);
  }
  for (PyObject* object : dead) Py_DECREF(object);  // runs whatever code it likes: with no lock held
}

}  // namespace headrace::bindings
