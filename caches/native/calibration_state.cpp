#include "calibration_state.hpp"

#include <utility>

namespace paceline {

std::vector<float> state_of(const Calibration& calibration) {
  std::vector<float> state;
  calibration.trust.append_state(state);
  calibration.acceptance.append_state(state);
  return state;
}

bool restore_state(Calibration& calibration, std::span<const float> state) {
  Calibration restored;
  const std::size_t num_trust = restored.trust.state_size();
  if (state.size() != num_trust + restored.acceptance.state_size()) return false;
  restored.trust.restore_state(state.first(num_trust));
  restored.acceptance.restore_state(state.subspan(num_trust));
  if (!restored.check().empty()) return false;
  calibration = std::move(restored);
  return true;
}

}  // namespace paceline
