//! `device.pair.*` and `device.token.*`.

use super::Call;
use crate::auth::scope::{Role, ScopeSet};
use crate::rpc::ErrorShape;
use crate::rpc::types::device::{
    DevicePairApproved, DevicePairDecideParams, DevicePairRejected, DevicePairRemoveParams,
    DevicePairRemoved, DevicePairRename, DeviceTokenRevokeParams, DeviceTokenRevoked,
    DeviceTokenRotateParams, DeviceTokenRotated, TokenDelivery,
};

pub(super) fn approve(call: Call<'_>) -> Result<DevicePairApproved, ErrorShape> {
    let DevicePairDecideParams { request_id } = call.params()?;
    let device = call.hub.approve_device(call.caller, &request_id)?;
    Ok(DevicePairApproved { request_id, device })
}

pub(super) fn reject(call: Call<'_>) -> Result<DevicePairRejected, ErrorShape> {
    let DevicePairDecideParams { request_id } = call.params()?;
    let device = call.hub.reject_device(call.caller, &request_id)?;
    Ok(DevicePairRejected {
        request_id,
        device_id: device.as_str().to_owned(),
    })
}

pub(super) fn remove(call: Call<'_>) -> Result<DevicePairRemoved, ErrorShape> {
    let DevicePairRemoveParams { device_id } = call.params()?;
    let device = call.hub.remove_device(call.caller, &device_id)?;
    Ok(DevicePairRemoved {
        device_id: device.as_str().to_owned(),
    })
}

pub(super) fn rename(call: Call<'_>) -> Result<DevicePairRename, ErrorShape> {
    let DevicePairRename { device_id, label } = call.params()?;
    let device = call.hub.rename_device(call.caller, &device_id, &label)?;
    Ok(DevicePairRename {
        device_id,
        label: device.label.unwrap_or_default(),
    })
}

pub(super) fn rotate(call: Call<'_>) -> Result<DeviceTokenRotated, ErrorShape> {
    let wanted: DeviceTokenRotateParams = call.params()?;
    let role = role(&wanted.role)?;
    let scopes = wanted.scopes.as_deref().map(ScopeSet::from_wire);
    let rotated = call
        .hub
        .rotate_token(call.caller, &wanted.device_id, role, scopes);
    let granted = rotated?;
    let delivery = if granted.token.is_some() {
        TokenDelivery::InBand
    } else {
        TokenDelivery::WithheldCrossDevice
    };
    let scopes = granted.scopes.to_wire().into_iter();
    Ok(DeviceTokenRotated {
        device_id: granted.device.as_str().to_owned(),
        role: granted.role.as_str().to_owned(),
        token: granted.token,
        scopes: scopes.map(str::to_owned).collect(),
        rotated_at_ms: granted.rotated_at_ms,
        token_delivery: Some(delivery),
    })
}

pub(super) fn revoke(call: Call<'_>) -> Result<DeviceTokenRevoked, ErrorShape> {
    let wanted: DeviceTokenRevokeParams = call.params()?;
    let role = role(&wanted.role)?;
    let (device, revoked_at_ms) = call
        .hub
        .revoke_token(call.caller, &wanted.device_id, role)?;
    Ok(DeviceTokenRevoked {
        device_id: device.as_str().to_owned(),
        role: role.as_str().to_owned(),
        revoked_at_ms,
    })
}

fn role(name: &str) -> Result<Role, ErrorShape> {
    Role::from_wire(name).ok_or_else(|| ErrorShape::invalid_request("invalid role"))
}
