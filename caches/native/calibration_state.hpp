#pragma once

#include <span>
#include <vector>

#include "calibration.hpp"

namespace paceline {

// What a calibration has learned, as one list of numbers of a fixed length, for snapshots.
std::vector<float> state_of(const Calibration& calibration);
// False, and nothing changed, where the numbers are no state of this calibration (another layout, or impossible).
bool restore_state(Calibration& calibration, std::span<const float> state);

}  // namespace paceline
